"""The examples of `gemb help python` run, and have the types that they seem to have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPIC = ROOT / "gemb" / "data" / "help" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", TOPIC.read_text(encoding="utf-8"), re.DOTALL)

# What gemb itself imports is not the example's.
STRICT = (
    *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
    "--follow-imports=silent",
)


def test_there_is_an_example_for_each_use():
    text = "".join(EXAMPLES)
    uses = ("Model(", "encode(", "encode_query(", "encode_document(", ".stream(", ".similarity(")
    for use in (*uses, ".profile", "Index.open(", "gemb.search(", "GembError", "ThreadPool"):
        assert use in text, use


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_example_runs(number, tmp_path):
    tool = tmp_path / "bin" / "gemb"  # as an install has it
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m gemb "$@"\n')
    tool.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[number]],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{tool.parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for shown in re.findall(r"print\(.*?\)  # (\(.*\)|float16 .*)", EXAMPLES[number]):
        assert shown in done.stdout.splitlines()


@pytest.mark.slow
def test_the_examples_pass_mypy_strict(tmp_path):
    pytest.importorskip("mypy")
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(example)
    (tmp_path / "example_types.py").write_text(
        "from typing import assert_type\n"
        "import gemb\n"
        "import numpy as np\n"
        "from numpy.typing import NDArray\n"
        "model = gemb.Model()\n"
        "assert_type(model.encode(['a']), NDArray[np.float32])\n"
        "assert_type(model.profile, gemb.ModelProfile)\n"
        "assert_type(gemb.search('a', '.'), gemb.SearchHits)\n"
        "assert_type(gemb.Index.open('i').search('a')[0].line, int | None)\n"
    )
    done = subprocess.run(
        [*STRICT, "."],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import gemb\ngemb.Model().encode([3])\ngemb.search(3)\n")
    done = subprocess.run(
        [*STRICT, str(wrong)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Found 2 errors in 1 file" in done.stdout
