"""A teacher's vectors of tokens: what they are, and the gradients of learning them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from gemb.backend import Cut
from gemb.checkpoint import open_checkpoint
from gemb.errors import UsageError
from gemb_torch.cut import cut_folder
from gemb_torch.cut_texts import Texts
from gemb_torch.frozen import FrozenEncoder
from gemb_torch.losses import token_gap
from gemb_torch.objective import objective
from gemb_torch.packing import pack
from gemb_torch.ranks import Ranks
from gemb_torch.token_teacher import TokenTeacher
from gemb_torch.tokenizer import load_tokenizer
from gemb_torch.weights import load
from gradient_cases import (
    CASES,
    batch_of,
    difference,
    found_gradients,
    gradients_by,
    model_of,
    one_thread,
    part_of,
    plain_gradients,
)
from test_ranks import in_processes
from tiny_model import TinyShape, write_tiny_model

PAIRS = 6
WEIGHT = 0.7
CASE = CASES["distillation"]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A teacher with other weights, and another number of layers, than the tiny model's."""
    return write_tiny_model(
        tmp_path_factory.mktemp("teacher"), TinyShape(seed=9, num_hidden_layers=4)
    )


def packed(texts, window):
    packing = pack(
        [len(ids) for ids in texts], window=window, device=torch.device("cpu"), max_padding=0.0
    )
    return torch.from_numpy(np.concatenate(texts).astype(np.int64)), packing


def taught(folder, student, dtype=torch.float32):
    return TokenTeacher(
        open_checkpoint(folder),
        open_checkpoint(student),
        weight=WEIGHT,
        device=torch.device("cpu"),
        dtype=dtype,
    )


def test_the_gap_of_tokens_is_the_oracles():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(7, width, generator=generator, dtype=torch.float64) for width in (4, 6)
    )
    found = token_gap(student, teacher).tolist()
    for s, t, gap in zip(student.numpy(), teacher.numpy()[:, :4], found, strict=True):
        assert gap == pytest.approx(np.linalg.norm(s - t) ** 2 / np.linalg.norm(t) ** 2, rel=1e-12)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_the_mean_of_the_tokens_vectors_is_the_texts(is_frozen, tiny_model):
    model = load(open_checkpoint(tiny_model))
    batch = batch_of(PAIRS, CASE)
    ids, packing = packed(batch.texts, model.config.sliding_window)
    with torch.no_grad():
        if is_frozen:
            found = FrozenEncoder(model, torch.float32).token_vectors(ids, packing)
        else:
            found = model.token_vectors(model.hidden(ids, packing))
        vectors = model(ids, packing)
    parts = torch.split(found, [len(text) for text in batch.texts])
    means = functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=1)
    torch.testing.assert_close(means, vectors, rtol=0, atol=1e-5)


@pytest.mark.parametrize("micro_tokens", [1, 64, 1_000_000])
def test_gradients_with_tokens_are_those_of_one_plain_pass(micro_tokens, tiny_model, other):
    batch = batch_of(PAIRS, CASE)
    model = model_of(tiny_model, CASE)
    made = replace(
        gradients_by(model, CASE, Ranks(), micro_tokens), token_teacher=taught(other, tiny_model)
    )
    assert difference(found_gradients(model, made, [batch]), plain(tiny_model, other, batch)) < 1e-6


def plain(student, teacher, batch):
    """Return the gradients of the loss of vectors, plus those of the tokens', written out."""
    model = model_of(student, CASE)
    gradients = plain_gradients(model, [batch], partial(objective, CASE.loss))
    for parameter in model.parameters():
        parameter.grad = None
    ids, packing = packed(batch.texts, model.config.sliding_window)
    right = load(open_checkpoint(teacher))
    first, second = (layer.weight for layer in model.dense)
    mine = model.hidden(ids, packing) @ first.T @ second.T
    with torch.no_grad():
        his = right.dense[1](right.dense[0](right.hidden(ids, packing)))
    loss = (((mine - his) ** 2).sum(1) / (his**2).sum(1)).mean()
    (WEIGHT * loss).backward()
    return {
        name: gradients[name] + parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_the_loss_says_what_tokens_add(tiny_model, other):
    batch = batch_of(PAIRS, CASE)
    model = model_of(tiny_model, CASE)
    without = gradients_by(model, CASE, Ranks(), 64)
    made = [
        each.add(batch, None, np.empty(0, np.int64))
        for each in (without, replace(without, token_teacher=taught(other, tiny_model)))
    ]
    assert made[1].parts.keys() - made[0].parts.keys() == {"token"}
    part = float(made[1].parts["token"])
    assert part > 0.1  # other weights: nothing alike
    assert float(made[1].loss - made[0].loss) == pytest.approx(WEIGHT * part, rel=1e-5)


def test_a_model_has_nothing_to_learn_from_itself(tiny_model):
    model = model_of(tiny_model, CASE)
    made = replace(
        gradients_by(model, CASE, Ranks(), 64), token_teacher=taught(tiny_model, tiny_model)
    )
    computed = made.add(batch_of(PAIRS, CASE), None, np.empty(0, np.int64))
    assert float(computed.parts["token"]) < 1e-9  # the square of fp32's rounding


def test_processes_share_the_tokens_of_a_step(tiny_model, other, tmp_path):
    batch = batch_of(PAIRS, CASE)
    (tmp_path / "models").write_text(f"{tiny_model}\n{other}")
    in_processes(2, tmp_path, share)
    found = np.load(tmp_path / "found.npz")
    expected = plain(tiny_model, other, batch)
    assert difference({name: torch.from_numpy(found[name]) for name in expected}, expected) < 1e-6


def share(ranks, folder):
    student, teacher = map(Path, (folder / "models").read_text().split("\n"))
    model = model_of(student, CASE)
    made = replace(gradients_by(model, CASE, ranks, 64), token_teacher=taught(teacher, student))
    mine = part_of(batch_of(PAIRS, CASE), ranks.part(PAIRS))
    found = found_gradients(model, made, [mine])
    if ranks.is_first:
        np.savez(folder / "found.npz", **{name: value.numpy() for name, value in found.items()})


def test_a_student_with_fewer_tokens_is_taught_by_the_teachers_own_rows(tiny_model, tmp_path):
    words = "the quick brown fox"
    cut_folder(
        tiny_model,
        tmp_path / "cut",
        Cut(layers=None, vocab=300),
        [Texts("a", lambda: iter([words]))],
    )
    folders = tiny_model, tmp_path / "cut"
    tokenizers = [
        load_tokenizer(folder / "tokenizer.json", open_checkpoint(folder).config.vocab_size)
        for folder in folders
    ]
    ids = [np.array(tokenizer.encode(words).ids) for tokenizer in tokenizers]
    assert ids[0].tolist() != ids[1].tolist()
    assert tokenizers[0].encode(words).tokens == tokenizers[1].encode(words).tokens
    window = open_checkpoint(tiny_model).config.sliding_window
    found = [
        taught(tiny_model, folder)(*packed([each], window))
        for folder, each in zip(folders, ids, strict=True)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_a_teacher_that_lacks_a_token_is_refused(tiny_model, tmp_path):
    texts = [Texts("a", lambda: iter(["a"]))]
    cut_folder(tiny_model, tmp_path / "cut", Cut(layers=None, vocab=300), texts)
    with pytest.raises(UsageError, match=r"cut has no token '.+', which .+ has; take a teacher"):
        taught(tmp_path / "cut", tiny_model)
