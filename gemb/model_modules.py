"""What turns a transformer's folder into sentence-transformers': its modules and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gemb.model_json import write_json
from gemb.poolings import pooling_settings

_MODULES = (
    ("Transformer", ""),
    ("Pooling", "1_Pooling"),
    ("Dense", "2_Dense"),
    ("Dense", "3_Dense"),
    ("Normalize", "4_Normalize"),
)


def write_modules(
    folder: Path,
    *,
    hidden: int,
    pooling: str,
    dense: tuple[tuple[int, int], tuple[int, int]],
    prompts: Mapping[str, str],
    matryoshka_dims: Sequence[int],
    max_tokens: int,
) -> None:
    """Write every settings file beside config.json and the tokenizer's; no weights.

    Args:
        folder: without folders of modules.
        hidden: width of a token's state.
        pooling: as a recipe names it.
        dense: (in, out) of the two dense layers.
        prompts: name -> the words before a text.
        matryoshka_dims: widths that are trained, the vector's among them.
        max_tokens: that a text may have.

    Raises:
        OSError: a file cannot be written.
    """
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(_MODULES)
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling_settings(pooling, hidden))
    settings = {
        "prompts": dict(prompts),
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "matryoshka_dims": list(matryoshka_dims),
    }
    write_json(folder / "config_sentence_transformers.json", settings)
    length = {"max_seq_length": max_tokens, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", length)
    for path, (size_in, size_out) in zip(("2_Dense", "3_Dense"), dense, strict=True):
        (folder / path).mkdir()
        settings_of_dense = {
            "in_features": size_in,
            "out_features": size_out,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        write_json(folder / path / "config.json", settings_of_dense)
