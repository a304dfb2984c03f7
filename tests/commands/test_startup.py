"""`gemb --help`, `--version`, completion and usage errors load nothing heavy, and are quick."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys

import pytest

HEAVY = {
    "faiss",
    "gemb_llamacpp",
    "gemb_torch",
    "gguf",
    "huggingface_hub",
    "importlib.metadata",
    "llama_cpp",
    "msgspec",
    "numpy",
    "orjson",
    "pyarrow",
    "safetensors",
    "sqlite3",
    "tokenizers",
    "torch",
    "tqdm",
    "yaml",
}
# main() leaves by os._exit, so the modules are told from inside it.
PROBE = """
import json, os, sys
leave = os._exit
def tell(code):
    os.write(2, ("\\n" + json.dumps([code, sorted(sys.modules)])).encode())
    leave(code)
os._exit = tell
sys.argv = ["gemb", *sys.argv[1:]]
from gemb.cli import main
main()
"""
COMPLETION = {
    "_GEMB_COMPLETE": "bash_complete",
    "COMP_WORDS": "gemb embed --model m",
    "COMP_CWORD": "3",
}
QUICK = [
    (["--help"], {}, 0),
    (["--version"], {}, 0),
    (["embed", "--help"], {}, 0),
    (["models", "show", "--help"], {}, 0),
    (["nosuch"], {}, 2),
    (["embed", "--nosuch"], {}, 2),
    (["completion", "bash"], {}, 0),
    (["completion", "fish"], {}, 0),
    ([], COMPLETION, 0),
    (["models", "path", "nosuch"], {}, 2),
]


@pytest.mark.parametrize(("words", "settings", "code"), QUICK, ids=lambda value: str(value)[:40])
def test_nothing_heavy_is_imported(words, settings, code):
    answer = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    left, modules = json.loads(answer.stderr.splitlines()[-1])
    assert left == code, answer.stderr
    loaded = {name for name in modules if name in HEAVY or name.partition(".")[0] in HEAVY}
    assert loaded == set()


def test_import_gemb_loads_nothing_heavy_and_takes_no_time():
    probe = (
        "import sys, time; began = time.process_time(); import gemb;"
        "print(time.process_time() - began, *sys.modules)"
    )
    command = [sys.executable, "-c", probe]
    seconds = []
    for _ in range(3):
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        seconds.append(float(out[0]))
        assert {name.partition(".")[0] for name in out[1:]} & {*HEAVY, "click"} == set()
    assert min(seconds) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("words", "settings", "code"), QUICK, ids=lambda value: str(value)[:40])
def test_it_takes_little_more_than_python_and_click(words, settings, code):
    # Processor time, by turns: start-up waits for nothing, and other work on the machine makes both
    # slower. With a quiet machine's 0.04 s for click, the bar is a tenth of a second.
    def once(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **settings},
            capture_output=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once("-m", "gemb", *words)  # the first run writes byte code
    ratios = [once("-m", "gemb", *words) / once("-c", "import click") for _ in range(5)]
    assert statistics.median(ratios) < 2.5
