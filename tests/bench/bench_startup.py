"""What `echo hello | gemb embed -m MODEL.gguf` takes beside the model's own load time.

    python tests/bench/bench_startup.py MODEL.gguf [--rounds 9]

The two take turns: the whole process, and llama.cpp loading the file in a process that has imported
all it needs before. The bar: 0.35 s between the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR_S = 0.35
# An installed package has its bytecode beside it.
CACHED = os.environ | {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "gemb-bytecode"),
}
LOAD = """
import sys, time
from pathlib import Path
from gemb_llamacpp import native
native.llama()
started = time.perf_counter()
native.open_model(Path(sys.argv[1]), device="cpu")
print(time.perf_counter() - started)
"""


def whole(model: Path) -> float:
    """Return the seconds of the whole command."""
    gemb = Path(sys.executable).with_name("gemb")
    started = time.perf_counter()
    subprocess.run(
        [gemb, "embed", "-m", model],
        input=b"hello\n",
        stdout=subprocess.DEVNULL,
        check=True,
        env=CACHED,
    )
    return time.perf_counter() - started


def load(model: Path) -> float:
    """Return the seconds that llama.cpp alone takes to load the file."""
    shown = subprocess.run(
        [sys.executable, "-c", LOAD, model], stdout=subprocess.PIPE, check=True, env=CACHED
    )
    return float(shown.stdout)


def main(model: Path, rounds: int) -> None:
    whole(model), load(model)  # the file is in memory from here on
    turns = [(whole(model), load(model)) for _ in range(rounds)]
    command, alone = (statistics.median(times) for times in zip(*turns, strict=True))
    best = min(a - b for a, b in turns)
    print(
        f"{model.name}: command {command:.3f} s, load alone {alone:.3f} s, "
        f"beside it {command - alone:.3f} s (least {best:.3f}; bar {BAR_S})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    options = parser.parse_args()
    main(options.model, options.rounds)
