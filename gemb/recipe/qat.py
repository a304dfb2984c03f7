"""The types of a recipe's `qat`, and whether a model's rows can be packed in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemb.errors import UsageError
from gemb.models.qat import Types
from gemb.models.tensors import BLOCK, tensor_class
from gemb.recipe.keys import to_plain

if TYPE_CHECKING:
    from gemb.recipe.schema import Recipe

_PACKED = ("q4_0", "q8_0")


def qat_types(recipe: Recipe) -> dict[str, str]:
    """Return the types of a recipe's `qat`; empty where it has none."""
    return to_plain(recipe.qat) if recipe.qat else {}


def check_model(types: Types, reference: str) -> None:
    """Refuse types that the rows of a model do not fill; nothing but headers is read.

    Raises:
        UsageError: a row is no multiple of the type's block, or the path holds no model.
        Missing: the model is not on this machine.
    """
    from gemb.models import references as models
    from gemb.models.checkpoint import open_checkpoint
    from gemb.models.gguf import open_gguf
    from gemb.models.tensors import folder_name

    source = models.resolve(reference)
    if source.is_dir():
        stored = open_checkpoint(source).tensors
        shapes = {name: tensor.shape for name, tensor in stored.items()}
    else:
        inside = open_gguf(source).header.tensors.values()
        shapes = {folder_name(tensor.name): tensor.shape[::-1] for tensor in inside}
    check_rows(types, shapes, reference)


def check_rows(types: Types, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Refuse types that rows do not fill.

    Args:
        types: of the classes.
        shapes: of the model's tensors, as in its folder: a row is the last number.
        model: for the message.

    Raises:
        UsageError: a row is no multiple of the type's block.
    """
    for name, shape in shapes.items():
        kind = tensor_class(name)
        type_ = types.get(kind)
        if type_ in _PACKED and shape[-1] % BLOCK:
            raise UsageError(
                f"qat.{kind}: {type_} packs {BLOCK} numbers of a row together, and {name} of "
                f"{model} has rows of {shape[-1]}; qat.{kind}=bf16 packs none"
            )
