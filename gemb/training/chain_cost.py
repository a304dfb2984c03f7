"""What a chain will cost, by arithmetic: tokens, memory and GPU-hours, before anything is run.

    operations   6 N a token: 2 N forwards, 4 N backwards; 2 N more where a batch is computed twice
                 (gradient cache), and where activations are; 2 N of the teacher for each token it
                 embeds
    N            the numbers that a token is multiplied with: the layers'. The token table is a
                 look-up, and the dense layers have a text's mean alone. In adaptation a token of an
                 input meets the encoder's layers and the keys and values of cross-attention; one of
                 a target the decoder's layers, cross-attention's other half, and the table
    hours        operations / (peak of the GPU * the share of it that is reached)
    memory       of one process: weights, gradients and both moments in fp32, 16 bytes a number,
                 and what a pass keeps for its way back

Attention's own products are left out: in the 300M model they add 5 % at 128 tokens, 19 % at 512.
Tokens are the most that the recipe can read, all texts as long as `max_tokens`, times `fill`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from gemb.errors import GembError, UsageError
from gemb.models import references as models
from gemb.models.config import read_json, whole_number
from gemb.models.gguf_header import GgufHeader, looks_like_gguf, read_header
from gemb.recipe.chain import Chain, Stage, references
from gemb.recipe.layers import layer_choice, layers_in
from gemb.recipe.schema import Adapt, Recipe
from gemb.training.ul2 import OBJECTIVES

# Peak of dense bf16 products, operations a second, by NVIDIA's and Google's data sheets.
PEAKS = {
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "a100": 312e12,
    "l4": 121e12,
    "tpu-v5e": 197e12,  # what EmbeddingGemma was trained on (its model card)
}
_STATE = 16  # bytes of a number that learns: weight, gradient, two moments
_KEPT = 3  # bytes, on average, of a number kept for the way back: bf16 of products, fp32 of norms


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model that count."""

    layers: int
    hidden: int
    feed_forward: int
    queries: int  # width of all heads
    keys: int  # width of all key heads
    vocabulary: int

    @property
    def layer(self) -> int:
        """Numbers in the matrices of a layer."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + 3 * self.hidden * self.feed_forward

    @property
    def table(self) -> int:
        """Numbers in the token table."""
        return self.vocabulary * self.hidden

    @property
    def dense(self) -> int:
        """Numbers in the two dense layers, four times as wide between them."""
        return 8 * self.hidden * self.hidden

    @property
    def parameters(self) -> int:
        """All numbers but the norms'."""
        return self.layers * self.layer + self.table + self.dense

    @property
    def kept(self) -> int:
        """Bytes that a pass keeps of a token for its way back."""
        widths = 8 * self.hidden + 5 * self.feed_forward + 2 * (self.queries + self.keys)
        return self.layers * widths * _KEPT


# EmbeddingGemma-300M (its config.json).
EMBEDDING_GEMMA = Shape(
    layers=24, hidden=768, feed_forward=1152, queries=768, keys=256, vocabulary=262144
)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What it runs on, and how much of it is reached."""

    name: str = "h100"
    share: float = 0.4  # of the peak
    fill: float = 1.0  # mean length of a text, of max_tokens


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage will cost; None: it has no such cost, or the data decides."""

    stage: str
    kind: str
    does: str
    steps: int | None = None
    tokens: float | None = None
    parameters: int | None = None
    memory_bytes: float | None = None
    operations: float | None = None
    gpu_hours: float | None = None


@dataclass(frozen=True)
class Plan:
    """The costs, and what they rest upon."""

    costs: tuple[Cost, ...]
    gpu: Gpu
    assumed: tuple[str, ...]  # models that are not here: their size is taken to be the 300M's

    @property
    def gpu_hours(self) -> float:
        """Of all stages whose cost is known."""
        return sum(cost.gpu_hours or 0.0 for cost in self.costs)


def plan(chain: Chain, gpu: Gpu) -> Plan:
    """Return what the stages will cost. Reads headers of models that are here, and no data.

    Raises:
        UsageError: a stage keeps layers that are no list of layers.
    """
    shapes: dict[str, Shape] = {}  # of what each stage makes
    assumed: list[str] = []
    costs = []
    for stage in chain.stages:
        models_read = [text for text in stage.inputs() if text in stage.models()]
        begins = {text: _shape(text, shapes, assumed) for text in models_read}
        shape = next(iter(begins.values()), EMBEDDING_GEMMA)
        if stage.recipe:
            shape = _cut(shape, stage.recipe)
            distill = stage.recipe.loss.distill
            teacher = begins.get(distill.teacher) if distill else None
            costs.append(_cost(stage, stage.recipe, shape, teacher, gpu))
        else:
            shape = _cut_by(shape, stage.command)
            costs.append(Cost(stage=stage.name, kind=stage.kind, does=" ".join(stage.command)))
        shapes[stage.name] = shape
    return Plan(tuple(costs), gpu, tuple(dict.fromkeys(assumed)))


def _cost(stage: Stage, recipe: Recipe, shape: Shape, teacher: Shape | None, gpu: Gpu) -> Cost:
    adapt = (recipe.adapt or Adapt()) if recipe.stage == "adapt" else None
    parameters = shape.parameters
    worked: float = shape.layers * shape.layer
    if adapt:
        # A decoder of the same size beside the encoder; a cross-attention as big as attention.
        from_inputs = shape.layers * 2 * shape.hidden * shape.keys
        from_targets = shape.layers * 2 * shape.hidden * shape.queries
        parameters = 2 * shape.layers * shape.layer + from_inputs + from_targets + shape.table
        written = _written(adapt)
        worked += (1 - written) * from_inputs + written * (from_targets + shape.table)
    a_step = _tokens_a_step(recipe, adapt, gpu.fill)
    steps = recipe.run.steps
    if steps and recipe.mixtures:  # trials, then the best in full
        steps = recipe.mixtures.trials * recipe.mixtures.steps + recipe.mixtures.best * steps
    tokens = steps * a_step if steps else None
    passes = 3 + recipe.run.activation_checkpointing  # the way back is two
    if not adapt and a_step / recipe.batch.accumulate > recipe.batch.micro_tokens:
        passes += 1
    operations = None
    if tokens is not None:
        operations = 2 * passes * worked * tokens
        if teacher:
            operations += 2 * teacher.layers * teacher.layer * tokens
    state = parameters * (_STATE + (4 if recipe.qat else 0))  # and its rounded copy
    kept = 0 if recipe.run.activation_checkpointing else shape.kept
    return Cost(
        stage=stage.name,
        kind=stage.kind,
        does=f"from {recipe.init.model}, {_sources(recipe)}",
        steps=steps or None,
        tokens=tokens,
        parameters=parameters,
        memory_bytes=state + recipe.batch.micro_tokens * kept,
        operations=operations,
        gpu_hours=operations / (PEAKS[gpu.name] * gpu.share) / 3600 if operations else None,
    )


def _tokens_a_step(recipe: Recipe, adapt: Adapt | None, fill: float) -> float:
    if adapt:  # packed: a step is full
        return adapt.tokens
    batch = recipe.batch
    return batch.accumulate * batch.pairs * (2 + batch.negatives) * batch.max_tokens * fill


def _written(adapt: Adapt) -> float:
    """Return the share of a text's tokens that the decoder writes, 0 to 1; marks are left out."""
    tasks = OBJECTIVES[adapt.objective]
    return sum(task.weight * task.noise for task in tasks) / sum(task.weight for task in tasks)


def _sources(recipe: Recipe) -> str:
    return f"{len(recipe.data)} source" + ("s" if len(recipe.data) > 1 else "")


def _cut(shape: Shape, recipe: Recipe) -> Shape:
    choice = layer_choice(recipe.init.keep_layers)
    layers = len(choice.layers) if choice.layers else choice.greedy or shape.layers
    vocabulary = min(recipe.init.vocab or shape.vocabulary, shape.vocabulary)
    return replace(shape, layers=min(layers, shape.layers), vocabulary=vocabulary)


def _cut_by(shape: Shape, command: Sequence[str]) -> Shape:
    """Return what a command leaves of a model: `gemb cut` fewer layers and tokens, others all."""
    if command[0] != "cut":
        return shape
    given = dict(pairwise(command))
    given |= {name: value for name, sign, value in (w.partition("=") for w in command) if sign}
    if "--keep-layers" in given:
        try:
            layers = len(layers_in(given["--keep-layers"]))
        except ValueError as error:
            raise UsageError(f"{' '.join(command)}: --keep-layers: {error}") from error
        shape = replace(shape, layers=min(layers, shape.layers))
    if "--vocab" in given:
        shape = replace(shape, vocabulary=min(int(given["--vocab"]), shape.vocabulary))
    return shape


def _shape(text: str, shapes: Mapping[str, Shape], assumed: list[str]) -> Shape:
    """Return the shape of a model: an earlier stage's, one that is here, or the assumed one."""
    for name, _ in references(text):
        return shapes[name]
    try:
        path = models.resolve(text, download=False)
        return _of_gguf(read_header(path)) if looks_like_gguf(path) else _of_folder(path)
    except (GembError, OSError, KeyError):  # not here, or no model: its stage will say so
        assumed.append(text)
        return EMBEDDING_GEMMA


def _of_folder(path: Path) -> Shape:
    """Return the shape of an encoder's folder, or of a decoder's."""
    file = path / "config.json"
    raw = read_json(file)
    width = whole_number(file, raw, "head_dim")
    return Shape(
        layers=whole_number(file, raw, "num_hidden_layers"),
        hidden=whole_number(file, raw, "hidden_size"),
        feed_forward=whole_number(file, raw, "intermediate_size"),
        queries=whole_number(file, raw, "num_attention_heads") * width,
        keys=whole_number(file, raw, "num_key_value_heads") * width,
        vocabulary=whole_number(file, raw, "vocab_size"),
    )


def _of_gguf(header: GgufHeader) -> Shape:
    architecture = header.metadata["general.architecture"]

    def number(name: str) -> int:
        value = header.metadata[f"{architecture}.{name}"]
        return value if isinstance(value, int) else 0

    width = number("attention.key_length")
    return Shape(
        layers=number("block_count"),
        hidden=number("embedding_length"),
        feed_forward=number("feed_forward_length"),
        queries=number("attention.head_count") * width,
        keys=number("attention.head_count_kv") * width,
        vocabulary=header.tensors["token_embd.weight"].shape[1],
    )
