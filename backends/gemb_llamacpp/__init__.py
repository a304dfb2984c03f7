"""The llama.cpp backend: GGUF files, written and run."""

from __future__ import annotations

from pathlib import Path

from gemb.backend import Backend


class LlamaCppBackend(Backend):
    """GGUF files of architecture `gemma-embedding`, written by gguf and run by llama.cpp."""

    name = "llamacpp"
    can = frozenset({"export_gguf"})

    def export_gguf(self, source: Path, target: Path, *, outtype: str) -> None:
        """Write the folder as one GGUF file; see `gemb_llamacpp.export`."""
        from gemb_llamacpp.export import export

        export(source, target, outtype)
