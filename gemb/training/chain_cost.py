"""The estimated cost of a chain: 6 operations for each token and each number in the layers.

    operations   6 N T: 2 N forwards and 4 N backwards for each of T tokens
    N            numbers in the layers of the model that a stage trains; not its token table
    T            steps times the tokens of a step, all texts as long as max_tokens
    hours        operations / operations a second

This is the order of the cost. A gradient cache, activation checkpointing and a teacher add up to
2 N each; shorter texts take less; what `gemb cut` removes, evaluation, commands and attention's own
products are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import GembError
from gemb.models import references as models
from gemb.models.checkpoint import backbone_tensors
from gemb.models.gguf_header import looks_like_gguf, read_header
from gemb.recipe.chain import Chain, Stage, references
from gemb.recipe.layers import layer_choice
from gemb.recipe.schema import Adapt, Draft, Recipe


@dataclass(frozen=True)
class Layers:
    """The layers of a model."""

    count: int
    numbers: int  # in the matrices of one layer


EMBEDDING_GEMMA = Layers(24, 768 * (2 * 768 + 2 * 256) + 3 * 768 * 1152)  # its config.json


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one stage; None: it depends on the data, or the stage is a command."""

    stage: str
    kind: str
    does: str
    steps: int | None = None
    tokens: int | None = None
    parameters: int | None = None  # N
    operations: float | None = None

    def hours(self, teraflops: float) -> float | None:
        """Return the hours at `teraflops` 10^12 operations per second."""
        return None if self.operations is None else self.operations / (teraflops * 1e12) / 3600


def plan(chain: Chain) -> tuple[list[Cost], list[str]]:
    """Return the costs of the stages, and the models that are not on this machine.

    Such models are assumed to be as large as EmbeddingGemma-300M. Only headers of models are read.
    """
    sizes: dict[str, Layers] = {}  # stage -> layers of the model that it makes
    costs, absent = [], []
    for name, stage in chain.items():
        layers = None
        for text in stage.models[:1] or stage.inputs:
            makers = references(text)
            layers = layers or (sizes[makers[0][0]] if makers else _layers(text))
        if layers is None and stage.recipe:
            absent.append(stage.recipe.init.model)
        sizes[name] = _kept(layers or EMBEDDING_GEMMA, stage)
        costs.append(_cost(stage, sizes[name]))
    return costs, list(dict.fromkeys(absent))


def _cost(stage: Stage, layers: Layers) -> Cost:
    if not stage.recipe:
        return Cost(stage=stage.name, kind=stage.kind, does=" ".join(stage.command))
    recipe, parameters = stage.recipe, layers.count * layers.numbers
    steps, search = recipe.run.steps, recipe.mixtures
    if search and steps:  # trials, then the best in full
        steps = search.trials * search.steps + search.best * steps
    tokens = steps * _tokens_a_step(recipe) or None
    sources = "1 source" if len(recipe.data) == 1 else f"{len(recipe.data)} sources"
    return Cost(
        stage=stage.name,
        kind=stage.kind,
        does=f"from {recipe.init.model}, {sources}",
        steps=steps or None,
        tokens=tokens,
        parameters=parameters,
        operations=6.0 * parameters * tokens if tokens else None,
    )


def _tokens_a_step(recipe: Recipe) -> int:
    if recipe.stage == "adapt":  # packed: a step is full
        return (recipe.adapt or Adapt()).tokens
    batch = recipe.batch
    if recipe.stage == "draft":
        return (batch.pairs + (recipe.draft or Draft()).texts) * batch.max_tokens
    return batch.accumulate * batch.pairs * (2 + batch.negatives) * batch.max_tokens


def _kept(layers: Layers, stage: Stage) -> Layers:
    if not stage.recipe:
        return layers
    choice = layer_choice(stage.recipe.init.keep_layers)
    count = len(choice.layers) if choice.layers else choice.greedy or layers.count
    return Layers(min(count, layers.count), layers.numbers)


def _layers(reference: str) -> Layers | None:
    """Return the layers of a model; None if it is not on this machine."""
    try:
        path = models.resolve(reference, download=False)
        sizes = _sizes(path)
    except (GembError, OSError):  # not here, or no model: its stage will report that
        return None
    names = {name.split(".")[1] for name in sizes}
    return Layers(len(names), sum(sizes.values()) // len(names)) if names else None


def _sizes(path: Path) -> dict[str, int]:
    """Return the number of weights in each matrix of a model's layers, by name."""
    shapes: dict[str, Sequence[int]] = {}
    if looks_like_gguf(path):
        shapes |= {name: tensor.shape for name, tensor in read_header(path).tensors.items()}
    else:
        shapes |= {name: tensor.shape for name, tensor in backbone_tensors(path).items()}
    return {
        name: shape[0] * shape[1]
        for name, shape in shapes.items()
        if name.startswith(("layers.", "blk.")) and len(shape) == 2
    }
