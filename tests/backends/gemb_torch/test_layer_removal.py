"""Layers are removed one by one: which, in which order, by which texts, and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import gemb_torch.cut.layers as layer_removal
from gemb.backend import Cut, Runtime
from gemb.datasets.plain_texts import Texts
from gemb.errors import UsageError
from gemb.models.checkpoint import open_checkpoint
from gemb.models.prompts import for_task
from gemb.plugins import able
from gemb_torch.cut.layers import TOKENS, LayerBench, LayerRemoval, Removal, token_ids
from tiny_model import TEXT, TinyShape, write_tiny_model

WORDS = TEXT.split()
FP32 = Runtime(device="cpu", precision="fp32")


def _texts(name: str, count: int, first: int = 0) -> Texts:
    def read() -> Iterator[str]:
        for row in range(first, first + count):
            start = row * 7 % len(WORDS)
            yield " ".join(WORDS[start : start + 2 + row % 9])

    return Texts(name, read)


SOURCES = (_texts("a", 40), _texts("b", 25, 300))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, every third of them global."""
    shape = TinyShape(num_hidden_layers=6, sliding_window_pattern=3)
    return write_tiny_model(tmp_path_factory.mktemp("six") / "model", shape)


def _removal(
    model: Path,
    texts: Sequence[Texts] = SOURCES,
    *,
    seed: int = 0,
    teacher: layer_removal.Teacher | None = None,
    runtime: Runtime = FP32,
) -> LayerRemoval:
    checkpoint = open_checkpoint(model)
    return LayerRemoval(
        checkpoint=checkpoint, texts=texts, seed=seed, runtime=runtime, teacher=teacher
    )


def _order(path: Path) -> list[Removal]:
    return [Removal(**step) for step in json.loads(path.read_text())["removed"]]


def _vectors(model: Path, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    encoder = able("cut").open(model, FP32)
    prompts = encoder.profile.prompts
    words = [for_task(task, prompts).render(text) for task, text in pairs]
    return encoder.encode(encoder.tokenize(words))


@pytest.fixture(scope="module")
def greedy(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Removal], Path]:
    """The order down to two layers, and the file it is in."""
    path = tmp_path_factory.mktemp("work") / "layers.json"
    kept = _removal(model).kept(2, path)
    order = _order(path)
    assert set(kept) == set(range(6)) - {removal.layer for removal in order}
    return order, path


def test_each_step_removes_the_layer_that_real_cuts_miss_least(
    model: Path, greedy: tuple[list[Removal], Path], tmp_path: Path
):
    """Every candidate is made by `gemb cut` and encoded from its folder: no cached states."""
    pairs = list(_removal(model)._pairs())
    assert {task for task, _ in pairs} == {"query", "document"}
    teacher = _vectors(model, pairs)
    left = list(range(6))
    slides = open_checkpoint(model).config.is_sliding
    for removal in greedy[0]:
        cosines = {}
        for layer in left:
            rest = [other for other in left if other != layer]
            if len({slides[other] for other in rest}) < 2:
                continue
            folder = tmp_path / "-".join(map(str, rest))
            able("cut").cut(model, folder, Cut(layers=tuple(rest)))
            cosines[layer] = float((_vectors(folder, pairs) * teacher).sum(1).mean())
        best = max(cosines, key=lambda layer: cosines[layer])
        ranked = sorted(cosines.values())
        assert len(ranked) < 2 or ranked[-1] - ranked[-2] > 1e-4  # no tie that rounding decides
        assert removal.layer == best
        # The same arithmetic in other batches.
        assert removal.cosine == pytest.approx(cosines[best], abs=1e-5)
        left.remove(best)
    assert len(left) == 2


def test_a_sliding_and_a_global_layer_always_stay(greedy: tuple[list[Removal], Path], model: Path):
    gone = {removal.layer for removal in greedy[0]}
    kinds = open_checkpoint(model).config.is_sliding
    assert {kinds[layer] for layer in range(6) if layer not in gone} == {True, False}


def test_fewer_removals_are_the_beginning_of_more(
    model: Path, greedy: tuple[list[Removal], Path], tmp_path: Path
):
    _removal(model).kept(4, tmp_path / "layers.json")
    assert _order(tmp_path / "layers.json") == greedy[0][:2]


def test_a_second_run_computes_nothing_and_a_stopped_one_goes_on(
    model: Path, greedy: tuple[list[Removal], Path], tmp_path: Path, monkeypatch, capsys
):
    order, path = greedy
    raw = json.loads(path.read_text())
    stopped = tmp_path / "layers.json"
    stopped.write_text(json.dumps(raw | {"removed": raw["removed"][:2]}))
    asked: list[int] = []
    real = LayerBench.without_each

    def counted(self, left, places):
        asked.append(len(left))
        return real(self, left, places)

    monkeypatch.setattr(LayerBench, "without_each", counted)
    _removal(model).kept(2, stopped)
    assert asked == [4, 3]
    assert _order(stopped) == order
    capsys.readouterr()
    monkeypatch.setattr(layer_removal, "LayerBench", None)  # no model is loaded now
    kept = _removal(model).kept(3, path)
    assert set(kept) == set(range(6)) - {removal.layer for removal in order[:3]}
    layers = ", ".join(str(removal.layer) for removal in order[:3])
    assert f"removed before, in this order: layers {layers}" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["texts", "seed", "model", "precision"])
def test_what_decides_the_order_makes_it_anew(
    what: str, model: Path, greedy: tuple[list[Removal], Path], tmp_path: Path
):
    path = tmp_path / "layers.json"
    raw = json.loads(greedy[1].read_text())
    raw["removed"][0]["layer"] = 77  # wrong, and taken as it is wherever the key still fits
    path.write_text(json.dumps(raw))
    other = _removal(model)
    if what == "texts":
        other = _removal(model, (*SOURCES, _texts("c", 5, 90)))
    elif what == "seed":
        many = (_texts("a", 900),)
        first, second = (_removal(model, many, seed=seed) for seed in (0, 1))
        assert list(first._pairs()) != list(second._pairs())
        assert list(first._pairs()) == list(_removal(model, many)._pairs())
        other = second
    elif what == "model":
        shape = TinyShape(num_hidden_layers=6, sliding_window_pattern=3, seed=1)
        other = _removal(write_tiny_model(tmp_path / "other", shape))
    else:
        other = _removal(model, runtime=Runtime(device="cpu", precision="bf16"))
    other.kept(5, path)
    assert _order(path)[0].layer != 77


def test_removals_are_told_on_stderr(model: Path, tmp_path: Path, capsys):
    _removal(model).kept(4, tmp_path / "layers.json")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    for line, removal, left in zip(said, _order(tmp_path / "layers.json"), (5, 4), strict=True):
        assert line == (
            f"gemb: note: layer {removal.layer} removed: mean cosine {removal.cosine:.4f} to the "
            f"teacher, {left} layers left"
        )


def test_another_teacher_is_followed_where_its_width_is_the_models(
    model: Path, greedy: tuple[list[Removal], Path], tmp_path: Path, capsys
):
    """The teacher is the model without a layer that is missed much: now that one goes first."""
    other = next(layer for layer in range(6) if layer != greedy[0][0].layer)
    rest = tuple(layer for layer in range(6) if layer != other)
    able("cut").cut(model, tmp_path / "teacher", Cut(layers=rest))
    asked: list[tuple[str, str]] = []

    def teacher(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        asked.extend(pairs)
        return _vectors(tmp_path / "teacher", pairs)

    removal = _removal(model, teacher=teacher)
    assert removal.kept(5, tmp_path / "layers.json") == rest
    assert asked == list(removal._pairs())
    # Prompts are the teacher's work; the same arithmetic in other batches.
    assert _order(tmp_path / "layers.json")[0].cosine == pytest.approx(1, abs=1e-5)
    wide = _removal(model, teacher=lambda pairs: np.ones((len(pairs), 128), np.float32))
    wide.kept(5, tmp_path / "wide.json")
    assert "128 wide, the model's 96" in capsys.readouterr().err
    assert _order(tmp_path / "wide.json") == greedy[0][:1]


def test_the_plain_model_gives_the_same_order(
    model: Path, greedy: tuple[list[Removal], Path], tmp_path: Path, monkeypatch
):
    """A GPU, and a CPU without oneDNN's operators, run the plain model."""
    monkeypatch.setattr("gemb_torch.cut.layers.can_freeze", lambda dtype: False)
    _removal(model).kept(2, tmp_path / "layers.json")
    order = _order(tmp_path / "layers.json")
    assert [removal.layer for removal in order] == [removal.layer for removal in greedy[0]]
    for ours, frozen in zip(order, greedy[0], strict=True):
        assert ours.cosine == pytest.approx(frozen.cosine, abs=1e-5)


def test_long_texts_are_cut_and_each_source_gives_alike(model: Path, monkeypatch):
    pairs = [("document", "dog " * 500), ("query", "dog")]
    rows = token_ids(open_checkpoint(model), pairs)
    assert [len(row) for row in rows] == [TOKENS, len(rows[1])]
    assert (rows[0][0], rows[0][-1]) == (2, 1)  # BOS and EOS stay
    monkeypatch.setattr(layer_removal, "TEXTS", 20)
    texts = [text for _, text in _removal(model, (_texts("a", 900), _texts("b", 50, 999)))._pairs()]
    long, short = set(_texts("a", 900).read()), set(_texts("b", 50, 999).read())
    assert len(texts) == 20
    assert all(text in long for text in texts[:10])
    assert all(text in short for text in texts[10:])


@pytest.mark.parametrize(("count", "message"), [(1, "2 is the least"), (7, "it has 6 layers")])
def test_so_many_layers_as_cannot_be_are_refused(
    model: Path, tmp_path: Path, count: int, message: str
):
    with pytest.raises(UsageError, match=f"keep_layers greedy:{count}: .*{message}"):
        _removal(model).kept(count, tmp_path / "layers.json")


def test_data_without_a_text_is_refused(model: Path, tmp_path: Path):
    empty = Texts("empty", lambda: iter(["", "  "]))
    with pytest.raises(UsageError, match="no text to measure layers with"):
        _removal(model, (empty,)).kept(3, tmp_path / "layers.json")


def test_cosines_only_fall(greedy: tuple[list[Removal], Path]):
    cosines = [1.0, *(removal.cosine for removal in greedy[0])]
    assert all(before > after - 0.05 for before, after in pairwise(cosines))
    assert cosines[-1] < 0.99  # the random model does miss its layers
