"""Every campaign, for GEMB_FUZZ_S seconds each: no fault. The same cases each time, as many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import campaign
import pytest

FILES = sorted(Path(__file__).parent.glob("fuzz_*.py"))


@pytest.mark.timeout(300 + 2 * campaign.SECONDS)
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_no_case_is_a_fault(file: Path, tmp_path):
    """In a process of its own: one that has computed has threads, which its forks would lack."""
    shown = subprocess.run(
        [sys.executable, file, "--keep", tmp_path], capture_output=True, text=True
    )
    assert shown.returncode == 0, f"\n{shown.stdout}{shown.stderr}"
    assert " cases in " in shown.stdout


def test_a_fault_is_counted_by_kind_and_its_smallest_case_is_kept(tmp_path):
    def faulty(_shared: Path):
        def case(rng, folder: Path) -> str:
            number = rng.randrange(1, 100)
            (folder / "input").write_bytes(b"x" * number)
            if number % 2:
                raise campaign.Fault("odd", number)
            return "even"

        return case

    report = campaign.run("sizes", faulty, seconds=60, numbers=range(50), keep=tmp_path)
    assert report.outcomes["even"] + report.faults["odd"] == 50
    smallest = report.kept["odd"]
    assert (smallest.folder / "input").read_bytes() == b"x" * int(smallest.detail)
    assert [path.name for path in tmp_path.iterdir()] == [smallest.folder.name]
    again = campaign.run("sizes", faulty, numbers=[smallest.number], keep=tmp_path)
    assert again.kept["odd"].size_bytes == smallest.size_bytes
    assert f"--only {smallest.number}" in str(again)


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        ("import time; time.sleep(60)", "hangs"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("raise KeyError('x')", "traceback"),
        ("raise SystemExit(7)", "traceback"),
        ("import os; os._exit(9)", "exit code 9"),
        ("import os; os._exit(2)", "exit code 2 without a line"),
        ("import sys; print('gemb: one\\ngemb: two', file=sys.stderr)", "more than gemb's line"),
        ("import sys; print('gemb: \\33[2J', file=sys.stderr)", "control characters"),
        ("bytes(7 << 30)", "traceback"),
        ("import sys; print('gemb: a bug in gemb: KeyError: 1', file=sys.stderr)", "a bug in gemb"),
    ],
)
def test_each_way_to_fail_is_seen(work: str, kind: str, tmp_path):
    ended = campaign.forked(lambda: exec(work), folder=tmp_path, seconds=2)
    with pytest.raises(campaign.Fault) as fault:
        campaign.judge(ended)
    assert kind in fault.value.kind


def test_a_command_that_works_and_one_that_is_refused_are_no_faults(tmp_path):
    works = campaign.gemb("models", "path", "mini", folder=tmp_path)
    assert campaign.judge(works) == 0
    assert works.stdout.endswith(b"mini.gguf\n")
    assert campaign.judge(campaign.gemb("models", "show", "./none", folder=tmp_path)) == 4
