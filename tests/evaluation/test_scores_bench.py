"""The table of scores: what is wrong is said at once, in a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "bench_scores.py"


@pytest.fixture
def scores(tmp_path: Path):
    """Run the bench on a folder with one set of four pairs."""
    (tmp_path / "dev").mkdir()
    rows = ["sentence1\tsentence2\tscore", "a b\ta b\t5", "a b\tc\t1", "c d\tc e\t3", "d\te f\t0"]
    (tmp_path / "dev" / "small.tsv").write_text("\n".join(rows) + "\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        shared = ("--cache", str(tmp_path / "cache"), "--sets", "small.tsv", "--times", "kept")
        return subprocess.run(
            [sys.executable, str(BENCH), *shared, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_model_gets_a_line_and_its_scores_are_kept(scores, tiny_gguf, tmp_path):
    words = ("--data", "dev", "--models", str(tiny_gguf), "--json", "all.json")
    first = scores(*words)
    assert first.returncode == 0, first.stderr
    head, _, line = first.stdout.splitlines()
    assert head.startswith("| model | width | small | mean | at 128 | MB |")
    assert line.startswith("| tiny | 96 | ")
    (known,) = json.loads((tmp_path / "all.json").read_text())["models"]
    (score,) = [row for row in known["scores"] if (row["set"], row["dim"]) == ("small", 96)]
    assert f"| {100 * score['value']:.1f} |" in line
    again = scores(*words)
    assert again.stdout == first.stdout
    assert "texts" not in again.stderr, "nothing was embedded again"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--data", "none", "--models", "mini"), "no such file or folder: none/small.tsv"),
        (("--data", "dev", "--models", "dev/small.tsv"), "no model that a backend knows"),
        (("--data", "dev", "--judge", "nothing"), "error: nothing: no path, and none of mini, "),
        (("--data", "dev", "--judge", "mini=there.gguf"), "error: there.gguf: no such file"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_scored(scores, tmp_path, words, line):
    answer = scores(*words)
    assert (answer.returncode, answer.stdout) == (2, "")
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("bench_scores")
    assert line in last
    assert "Traceback" not in answer.stderr
    assert not list((tmp_path / "cache").glob("*.json"))
