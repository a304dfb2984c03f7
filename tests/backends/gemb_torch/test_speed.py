"""What is said of the memory that a run needs."""

from __future__ import annotations

import pytest
import torch

from gemb.io.machine import Memory
from gemb_torch.train import speed

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("usable", "peak", "here", "words"),
    [
        (Memory(1, 2_000_000_000, True), 1_900_000_000, 1, ""),
        (
            Memory(1, 2_000_000_000, True),
            2_100_000_000,
            1,
            "it needs about 2.1 GB of memory, and this machine has 2.0 GB, the limit of its "
            "control group; a smaller batch.micro_tokens takes less",
        ),
        (
            Memory(1, 4_000_000_000, False),
            2_100_000_000,
            2,
            "it needs about 4.2 GB of memory, and this machine has 4.0 GB; a smaller "
            "batch.micro_tokens takes less",
        ),
        (None, 1 << 50, 1, ""),
    ],
)
def test_more_memory_than_the_machine_or_its_group_has_is_told(
    usable, peak, here, words, monkeypatch, capsys
):
    monkeypatch.setattr(speed, "memory", lambda: usable)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    said = speed.memory_words(peak, CPU, here)
    assert said == f"{peak / 1e9:.1f} GB of memory" + " in each of 2 processes" * (here == 2)
    assert capsys.readouterr().err == (f"gemb: warning: {words}\n" if words else "")


def test_a_gpus_memory_is_not_the_machines(monkeypatch, capsys):
    monkeypatch.setattr(speed, "memory", lambda: Memory(1, 2, True))
    speed.memory_words(1 << 40, torch.device("cuda"), 1)
    assert not capsys.readouterr().err
