"""Export a model folder to GGUF, and verify its vectors before the file gets its name.

The least cosines that are accepted are those of `gemb.evaluation.agreement`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.backend import Backend, Runtime
from gemb.errors import Missing, NegativeAnswer
from gemb.io.atomic import new_file
from gemb.plugins import able, for_model

if TYPE_CHECKING:
    from gemb.evaluation.agreement import Agreement
    from gemb.models.qat import Types


OUTTYPES = ("auto", "f32", "bf16", "q8_0", "q4_0")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The exported file, and its agreement with the source."""

    target: Path
    size_bytes: int
    types: Types  # of the tensors' classes
    bar: float | None  # the least cosine that is accepted; None: not verified
    agreement: Agreement | None  # of the source and the file


def check_export(source: Path, *, outtype: str, verify: bool) -> Types:
    """Return the types of the file, after the checks that `export_gguf` makes before it writes."""
    backend = able("export_gguf")
    if verify:
        _runner(source)
    return backend.export_gguf(source, None, outtype=outtype)


def export_gguf(
    source: Path,
    target: Path,
    *,
    outtype: str,
    verify: bool = True,
    min_cosine: float | None = None,
) -> Exported:
    """Write the model folder `source` as the GGUF file `target`, which is overwritten.

    Args:
        source: a model folder.
        target: the file.
        outtype: one of `OUTTYPES`; auto: the types that the model was trained for, or bf16.
        verify: embed `VERIFICATION_TEXTS` with both, and compare the vectors.
        min_cosine: the least cosine that a text's two vectors may have; None: that of the type
            (`gemb.evaluation.agreement.BARS`).

    Raises:
        NegativeAnswer: the vectors differ by more; no file is written.
        Missing: the backend that runs `source` is not installed, so nothing can be verified.
        UsageError: the folder is no model, or a model that a GGUF file cannot hold.
    """
    backend = able("export_gguf")
    runner = _runner(source) if verify else None
    with new_file(target) as part:
        types = backend.export_gguf(source, part, outtype=outtype)
        size = part.stat().st_size
        if runner is None:
            return Exported(target=target, size_bytes=size, types=types, bar=None, agreement=None)

        from gemb.evaluation.agreement import VERIFICATION_TEXTS, bar_for, compare

        exact = runner.open(source, Runtime(precision="fp32"))
        written = backend.open(part, Runtime())
        agreement = compare(exact, written, VERIFICATION_TEXTS)
        bar = bar_for("f32", "+".join(types.values())) if min_cosine is None else min_cosine
        if agreement.min_cosine < bar or agreement.one_failed:
            raise NegativeAnswer(
                f"{target}: not written: its vectors are not the model's: least cosine "
                f"{agreement.min_cosine:.5f}, mean {agreement.mean_cosine:.5f}, "
                f"{agreement.one_failed} failed; {bar} is asked for (--min-cosine), worst is "
                f"{agreement.worst_text[:40]!r}"
            )
    return Exported(target=target, size_bytes=size, types=types, bar=bar, agreement=agreement)


def _runner(source: Path) -> Backend:
    """Return the backend that runs the source, with which the file is compared."""
    try:
        return for_model(source, runtime=Runtime(precision="fp32"))
    except Missing as error:
        raise Missing(f"{error}; or export without the check: --no-verify") from error
