"""Checks of a recipe beyond its single keys: combinations of keys, and texts with a grammar."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from gemb.errors import UsageError
from gemb.models.gguf_keys import POOLINGS
from gemb.recipe.keys import to_plain
from gemb.recipe.layers import layer_choice
from gemb.recipe.names import resolve_data
from gemb.recipe.schema import Adapt, Draft, Loss, Recipe

SPARE = 8  # tokens around a text that adaptation adds at least: BOS, EOS, marks
_GIVE = "give loss.contrastive, loss.distill or both"
Problem = tuple[str, str]  # the path of the key at fault, and the message about it


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong, worst first."""
    for check in _CHECKS:
        yield from check(recipe)


def _adaptation(recipe: Recipe) -> Iterator[Problem]:
    if recipe.stage != "adapt":
        if recipe.adapt is not None:
            yield "adapt", f"is of the stage adapt, not of {recipe.stage}; null leaves it out"
        return
    adapt, run = recipe.adapt or Adapt(), recipe.run
    for part in ("contrastive", "spread_out", "distill"):
        if getattr(recipe.loss, part) is not None:
            yield f"loss.{part}", "is of vectors, and adaptation learns to write texts; take null"
    if recipe.eval.data:
        yield "eval.data", "is of vectors, which adaptation does not train; evaluate a later stage"
    if recipe.held_out:
        yield "held_out", "is of rows, and adaptation cuts texts in pieces; take []"
    if run.shard != "none":
        yield "run.shard", f"is {run.shard}, which adaptation does not have; take none"
    if adapt.tokens < recipe.batch.max_tokens + SPARE:
        yield (
            "adapt",
            f"has tokens {adapt.tokens}: a text of {recipe.batch.max_tokens} tokens "
            "(batch.max_tokens) must fit, with what stands around it",
        )
    if adapt.cross_attention == "random" and 0 < run.steps <= adapt.cross_warmup_steps:
        yield (
            "adapt.cross_warmup_steps",
            f"leaves none of {run.steps} steps (run.steps) to the rest of the model",
        )


def _after_adaptation(recipe: Recipe) -> Iterator[Problem]:
    if recipe.stage != "adapt":
        return
    if recipe.qat:
        yield "qat", "rounds the weights of an embedding model; in adaptation take null"
    if recipe.mixtures:
        yield "mixtures", "compares vectors, which adaptation does not train; take null"


def _draft(recipe: Recipe) -> Iterator[Problem]:
    if recipe.stage != "draft":
        if recipe.draft is not None:
            yield "draft", f"is of the stage draft, not of {recipe.stage}; null leaves it out"
        return
    draft = recipe.draft or Draft()
    if not draft.contrast + draft.cosine + draft.likeness:
        yield "draft", "has no weight above 0: give contrast, cosine or likeness one"
    if draft.hidden < 2 * draft.width:
        least = f"{2 * draft.width}, two of draft.width"
        yield "draft.hidden", f"is {draft.hidden}; it begins as a linear layer, which takes {least}"
    if draft.documents > draft.queries:
        yield "draft.documents", f"is {draft.documents}, more than draft.queries {draft.queries}"


def _beside_draft(recipe: Recipe) -> Iterator[Problem]:
    if recipe.stage != "draft":
        return
    for part in ("contrastive", "spread_out", "distill"):
        if getattr(recipe.loss, part) is not None:
            yield f"loss.{part}", "is of other stages: draft has weights of its own; take null"
    for key in ("qat", "mixtures"):
        if getattr(recipe, key):
            yield key, "is of models with layers, which a draft has not; take null"
    if recipe.eval.data:
        yield "eval.data", "needs one model for both sides, and a draft has documents alone"


def _losses(recipe: Recipe) -> Iterator[Problem]:
    if recipe.stage in ("adapt", "draft"):
        return
    loss = recipe.loss
    if recipe.stage == "distill" and loss.distill is None:
        yield "stage", "is distill, which needs loss.distill, with its teacher"
    elif loss.contrastive is None and loss.distill is None:
        yield "loss", f"has nothing that draws texts together; {_GIVE}"
    elif not _weight(loss):
        yield "loss", f"has no weight above 0 on what draws texts together; {_GIVE}"
    if loss.distill and not loss.distill.sides:
        yield "loss.distill.sides", "is empty; null for loss.distill switches it off"
    if loss.distill and len(set(loss.distill.sides)) < len(loss.distill.sides):
        yield "loss.distill.sides", "names a side twice"


def _weight(loss: Loss) -> float:
    """Return the weight of the losses that draw texts together: all but spread-out."""
    contrastive = loss.contrastive.weight if loss.contrastive else 0.0
    distill = loss.distill.weight + loss.distill.similarity_weight if loss.distill else 0.0
    return contrastive + distill


def _widths(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.loss.matryoshka:
        yield "loss.matryoshka", "is empty; [768] trains the full width alone"
    for path, widths in (
        ("loss.matryoshka", recipe.loss.matryoshka),
        ("eval.dims", recipe.eval.dims),
    ):
        if not _descends(widths):
            better = sorted(set(widths), reverse=True)
            yield path, f"must have the widest first, each once: {better}, not {list(widths)}"


def _descends(widths: Sequence[int]) -> bool:
    return all(wide > narrow for wide, narrow in itertools.pairwise(widths))


def _sources(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.data:
        yield "data", "has no entry; give at least one, with its path"
    weights = [source.weight is not None for source in recipe.data]
    if any(weights) and not all(weights):
        yield f"data.{weights.index(False)}", "has no weight, and others have; give all or none one"
    names: dict[str, int] = {}
    for i, source in enumerate(recipe.data):
        if not source.path.strip():
            yield f"data.{i}.path", "is empty; name a file, a folder or @sample/NAME"
        for key, path in (("path", source.path), ("corpus", source.corpus)):
            try:
                resolve_data(path)
            except UsageError as error:
                yield f"data.{i}.{key}", f"is not there: {error}"
        if source.name and names.setdefault(source.name, i) != i:
            yield f"data.{i}.name", f"'{source.name}' is the name of data.{names[source.name]}, too"
        for side in ("query", "positive"):
            prompt = getattr(source.prompts, side)
            if prompt and "{text}" not in prompt:
                yield f"data.{i}.prompts.{side}", f"has no {{text}} where the text goes: {prompt!r}"


def _evaluation(recipe: Recipe) -> Iterator[Problem]:
    held_out = ((f"held_out.{i}", path) for i, path in enumerate(recipe.held_out))
    for key, path in (("eval.data", recipe.eval.data), *held_out):
        try:
            resolve_data(path)
        except UsageError as error:
            yield key, f"is not there: {error}"


def _start(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.init.model.strip():
        yield "init.from", "is empty; name a model, such as embeddinggemma-300m"
    try:
        layer_choice(recipe.init.keep_layers)
    except ValueError as error:
        yield "init.keep_layers", f"{recipe.init.keep_layers!r} is no choice: {error}; or all"
    if recipe.loss.distill and not recipe.loss.distill.teacher.strip():
        yield "loss.distill.teacher", "is empty; name a model or a file of vectors"


def _mixtures(recipe: Recipe) -> Iterator[Problem]:
    search = recipe.mixtures
    if search is None:
        return
    if len(recipe.data) < 2:
        yield "mixtures", "needs two sources or more in data"
    if not recipe.eval.data:
        yield "mixtures", "needs eval.data: by it the best mixture is chosen"
    if search.best > search.trials:
        yield "mixtures.best", f"is {search.best}, of {search.trials} trials"


def _memory(recipe: Recipe) -> Iterator[Problem]:
    batch = recipe.batch
    if batch.micro_tokens < batch.max_tokens:
        sizes = f"micro_tokens {batch.micro_tokens}, fewer than max_tokens {batch.max_tokens}"
        yield "batch", f"has {sizes}: the longest text must fit"


def _quantized(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.qat:
        return
    if recipe.pooling not in POOLINGS:
        yield "qat", f"trains for a GGUF file, which has no {recipe.pooling} pooling"
    if set(to_plain(recipe.qat).values()) == {"f32"}:
        yield "qat", "rounds nothing: every type is f32; null switches it off"


_CHECKS: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    _sources,
    _evaluation,
    _adaptation,
    _after_adaptation,
    _draft,
    _beside_draft,
    _losses,
    _widths,
    _start,
    _mixtures,
    _memory,
    _quantized,
)
