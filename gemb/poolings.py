"""How the tokens' states of a text become one: its names here, in a model folder, and in a GGUF."""

from __future__ import annotations

from pathlib import Path

from gemb.errors import UsageError
from gemb.model_json import read_json

# As a recipe names it, and as sentence-transformers does; `attention` is gemb's own.
POOLINGS = {"mean": "mean", "first": "cls", "last": "lasttoken", "attention": "attention"}
GGUF_POOLINGS = {"mean": 1, "first": 2, "last": 3}  # llama.h, enum llama_pooling_type
ATTENTION_HEADS = 4  # learned queries of attention pooling (arXiv 2509.20354, ablations)


def read_pooling(path: Path) -> str:
    """Return the pooling in the config.json of a folder's `1_Pooling`, as a recipe names it.

    Raises:
        UsageError: it is missing or broken, or is none that gemb has.
    """
    raw = read_json(path)
    # sentence-transformers 6 writes `pooling_mode`; earlier ones a flag for each mode.
    mode = raw.get("pooling_mode")
    modes = {mode} if isinstance(mode, str) else set(mode or ())
    if not modes:
        modes = {
            key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for key, value in raw.items()
            if key.startswith("pooling_mode_") and value
        }
    found = [pooling for pooling, name in POOLINGS.items() if modes == {name}]
    if not found or not raw.get("include_prompt", True):
        raise UsageError(
            f"{path}: pooling {', '.join(sorted(modes)) or 'none'}, include_prompt "
            f"{raw.get('include_prompt', True)}; gemb has one of {', '.join(POOLINGS.values())}, "
            "over all tokens"
        )
    return found[0]


def pooling_settings(pooling: str, width: int) -> dict[str, object]:
    """Return what `1_Pooling/config.json` holds of states of this width.

    sentence-transformers of every version reads it; attention, which it has not, it refuses.
    """
    settings: dict[str, object] = {"word_embedding_dimension": width}
    if pooling == "attention":
        settings["pooling_mode"] = POOLINGS[pooling]
    else:
        for name, flag in (("first", "cls_token"), ("mean", "mean_tokens"), ("last", "lasttoken")):
            settings[f"pooling_mode_{flag}"] = name == pooling
    return settings | {"include_prompt": True}


def check_heads(width: int, model: str) -> None:
    """Refuse a model whose states of this width attention pooling cannot divide.

    Raises:
        UsageError: the heads do not share the width evenly.
    """
    if width % ATTENTION_HEADS:
        raise UsageError(
            f"{model}: attention pooling has {ATTENTION_HEADS} heads, which do not share a width "
            f"of {width} evenly"
        )
