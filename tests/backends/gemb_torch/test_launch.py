"""`gemb train --nproc N`: real processes, real signals, real kills; at the user's prompt."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemb.errors import GembError, NegativeAnswer, UsageError
from gemb.training.outcome import hand_over, outcomes
from gemb_torch import launch
from gemb_torch.launch import Ended, end_as
from gemb_torch.model.ranks import OtherProcessFailed
from triplets import write_pairs

pytestmark = pytest.mark.slow

RECIPE = """
stage: finetune
init: {{from: {model}}}
data: [{{path: {pairs}}}]
batch: {{pairs: 8, negatives: 2, max_tokens: 32, micro_tokens: 64}}
loss: {{matryoshka: [96, 48], contrastive: {{temperature: 0.05}}, spread_out: {{}}}}
run: {{steps: 6, precision: fp32, log_every: 1}}
optimizer: {{lr: 1e-4}}
checkpoint: {{every_steps: 3, keep: 9}}
"""
SOON_S = 180  # two cores may be busy with other tests


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    pairs = write_pairs(folder / "pairs.jsonl")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_model, pairs=pairs))
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert gemb("train", str(recipe), "-o", str(run), "-q").returncode == 0
    return run


@pytest.fixture(scope="module")
def of_two(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes."""
    run = tmp_path_factory.mktemp("of_two") / "run"
    answer = gemb("train", str(recipe), "-o", str(run), "-q", "--nproc", "2")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    return run


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "gemb", *words]


def gemb(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=240, check=False, **more
    )


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def weights(run: Path) -> dict[str, np.ndarray]:
    return {
        f"{file.parent.name}/{name}": values
        for file in sorted((run / "model").rglob("*.safetensors"))
        for name, values in load_file(file).items()
    }


def farthest(one: Path, other: Path) -> float:
    """Return the greatest difference of a weight."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def ranks_of(launcher: int) -> dict[int, int]:
    """Return the processes of a run that goes on, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != launcher:
                continue
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {int(each[5:]): int(folder.name) for each in variables if each[:5] == b"RANK="}
    return found


def wait_for_steps(run: Path, process: subprocess.Popen[str], steps: int = 2) -> None:
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        if (run / "metrics.jsonl").is_file() and len(losses(run)) >= steps:
            return
        time.sleep(0.05)
    raise AssertionError("no steps")


def wait_for_handler(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Wait until a process, which may still import what it needs, answers a signal itself."""
    status = Path(f"/proc/{process.pid}/status")
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", status.read_text())
        if int(caught, 16) >> (number - 1) & 1:
            return
        time.sleep(0.05)
    raise AssertionError("no handler")


def endless(recipe: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """Start a run of two that does not end by itself."""
    words = ["train", str(recipe), "run.steps=1000000", "-o", str(run), "-q", "--nproc", "2"]
    return start(*words, *more)


def test_two_processes_train_the_weights_of_one(alone, of_two):
    # Sums in another order, and AdamW divides by the root of small squares: not bit for bit.
    assert losses(of_two) == pytest.approx(losses(alone), rel=1e-5)
    assert farthest(alone, of_two) < 1e-5


def test_the_same_pairs_are_looked_at_however_many_processes_there_are(alone, of_two):
    one, two = (json.loads((run / "similarities.json").read_bytes()) for run in (alone, of_two))
    for when in ("before", "after"):
        assert two[when]["pairs"] == one[when]["pairs"] > 256
        assert two[when]["alignment"] == pytest.approx(one[when]["alignment"], rel=1e-3)


def test_processes_of_two_machines_train_the_weights_of_one(recipe, alone, tmp_path):
    meeting = f"localhost:{free_port()}"
    run = tmp_path / "run"
    words = ["train", str(recipe), "-o", str(run), "-q", "--nproc", "1", "--nnodes", "2"]
    machines = [start(*words, "--rdzv", meeting) for _ in range(2)]
    for machine in machines:
        out, err = machine.communicate(timeout=240)
        assert (machine.returncode, out, err) == (0, "", "")
    assert farthest(alone, run) < 1e-5


def printed(meeting: str, recipe: Path, run: Path, nodes: int, processes: int) -> list[str]:
    """The command for each of two machines that `gemb help scale` and the batch file print."""
    root = Path(__file__).parents[3]
    usual = "gemb train finetune.yaml -o /shared/runs/a --nnodes 2 --nproc 8 --rdzv HOST:29500"
    for file in ("gemb/data/help/scale.md", "recipes/slurm.sh"):
        assert f"{usual} --resume auto\n" in (root / file).read_text(), file
    replaced = {
        "finetune.yaml": str(recipe),
        "/shared/runs/a": str(run),
        "2": str(nodes),
        "8": str(processes),
        "HOST:29500": meeting,
    }
    return [*(replaced.get(word, word) for word in usual.split()[1:]), "--resume", "auto"]


@pytest.mark.timeout(900)  # three runs
def test_a_rank_of_two_machines_is_killed_and_three_go_on(recipe, tmp_path):
    run, steps = tmp_path / "run", "run.steps=30"
    words = printed(f"localhost:{free_port()}", recipe, run, 2, 1)
    machines = [start(*words, steps, "-q") for _ in range(2)]
    try:
        wait_for_steps(run, machines[0], 4)
        victim = ranks_of(machines[1].pid)
        os.kill(*victim.values(), signal.SIGKILL)
        errors = [machine.communicate(timeout=SOON_S)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [5, 5]
    assert f"gemb: rank {next(iter(victim))} was killed by SIGKILL" in errors[1]
    assert all(error.count("\n") == 1 for error in errors), errors
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[0] == "step-000003"

    words = printed("localhost:0", recipe, run, 1, 3)
    assert gemb(*words, steps, "-q").returncode == 0
    whole = tmp_path / "whole"
    assert gemb("train", str(recipe), steps, "-o", str(whole), "-q").returncode == 0
    assert losses(run)[-1] == pytest.approx(losses(whole)[-1], rel=1e-4)
    assert farthest(whole, run) < 1e-4


def test_torchrun_may_start_the_processes(recipe, alone, tmp_path):
    run = tmp_path / "run"
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "gemb", "train", str(recipe), "-o", str(run), "-q"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert farthest(alone, run) < 1e-5


@pytest.fixture(scope="module")
def sharded(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that share the weights."""
    run = tmp_path_factory.mktemp("sharded") / "run"
    words = [
        "train",
        str(recipe),
        "run.shard=fsdp2",
        "eval.data=builtin:tiny",
        "eval.every_steps=3",
    ]
    answer = gemb(*words, "-o", str(run), "-q", "--nproc", "2")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("VERDICT ")
    return run


def test_sharded_weights_are_trained_to_those_of_one(alone, sharded):
    assert losses(sharded) == pytest.approx(losses(alone), rel=1e-5)
    assert farthest(alone, sharded) < 1e-5


def test_the_sharded_model_that_is_measured_is_the_one_in_training(sharded):
    assert (
        json.loads((sharded / "scores-baseline.json").read_bytes())["rows"]
        != (json.loads((sharded / "scores-final.json").read_bytes())["rows"])
    )
    assert (sharded / "best" / "model.safetensors").is_file()


def test_a_sharded_checkpoint_is_the_same_as_another(of_two, sharded):
    for file in ("model/model.safetensors", "state/optimizer.safetensors"):
        a, b = (load_file(run / "checkpoints" / "step-000003" / file) for run in (of_two, sharded))
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-6)
    a, b = (
        np.load(run / "checkpoints" / "step-000003" / "state" / "rows.npy")
        for run in (of_two, sharded)
    )
    assert a.tolist() == b.tolist()


@pytest.mark.parametrize(("first", "then"), [("sharded", "none"), ("of_two", "fsdp2")])
def test_a_checkpoint_goes_on_with_or_without_shards(first, then, recipe, tmp_path, request):
    before = request.getfixturevalue(first)
    run = tmp_path / "run"
    shutil.copytree(before, run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-000006")
    words = ["train", str(recipe), f"run.shard={then}", "-o", str(run), "--resume", "auto", "-q"]
    answer = gemb(*words, "--nproc", "2")
    assert answer.returncode == 0, answer.stderr
    assert farthest(before, run) < 1e-5


@pytest.mark.parametrize("processes", [1, 4])
def test_a_checkpoint_goes_on_with_another_number_of_processes(processes, recipe, of_two, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(of_two, run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-000006")
    words = ["train", str(recipe), "-o", str(run), "--resume", "auto"]
    answer = gemb(*words, "-q", "--nproc", str(processes))
    assert answer.returncode == 0, answer.stderr
    assert farthest(of_two, run) < 1e-5


def test_a_run_that_has_ended_stays_as_it_is(recipe, of_two):
    before = weights(of_two)
    answer = gemb("train", str(recipe), "-o", str(of_two), "--resume", "auto", "--nproc", "2")
    assert answer.returncode == 0, answer.stderr
    assert "has ended" in answer.stderr
    after = weights(of_two)
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_leaves_with_75(name, recipe, tmp_path):
    run = tmp_path / "run"
    process = endless(recipe, run)
    wait_for_steps(run, process)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 75, err
    said = [line for line in err.splitlines() if "note: stopping" not in line]
    assert len(said) == 1, err
    assert said[0].startswith(f"gemb: stopped by {name} after step "), err
    assert out == ""
    assert list((run / "checkpoints").glob("step-*/state/progress.json"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_all_at_any_moment_before_the_first_step(name, recipe, tmp_path):
    codes = []
    for seconds in range(0, 8, 2):
        run = tmp_path / f"run{seconds}"
        process = endless(recipe, run)
        wait_for_handler(process, signal.Signals[name])
        time.sleep(seconds)
        process.send_signal(signal.Signals[name])
        _, err = process.communicate(timeout=SOON_S)
        codes.append(process.returncode)
        said = [line for line in err.splitlines() if "note: " not in line]
        assert len(said) == 1, err
        assert said[0].startswith(("gemb: stopped by SIG", "gemb: terminated")), err
    assert set(codes) <= ({75} if name == "SIGUSR1" else {75, 143}), codes


def test_two_runs_of_two_do_not_train_in_one_folder(recipe, tmp_path):
    run = tmp_path / "run"
    process = endless(recipe, run)
    wait_for_steps(run, process)
    first = ranks_of(process.pid)[0]
    second = endless(recipe, run, "--resume", "auto")
    _, err = second.communicate(timeout=SOON_S)
    assert second.returncode == 2
    assert err.startswith(f"gemb: {run} is being trained by process {first} on "), err
    assert err.count("\n") == 1
    process.terminate()
    process.communicate(timeout=SOON_S)
    assert process.returncode == 75


@pytest.mark.parametrize(("rank", "name"), [(0, "SIGKILL"), (1, "SIGKILL"), (1, "SIGSEGV")])
def test_a_rank_that_is_killed_ends_the_run_with_one_line(rank, name, recipe, tmp_path):
    run = tmp_path / "run"
    process = endless(recipe, run)
    wait_for_steps(run, process)
    ranks = ranks_of(process.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[rank], signal.Signals[name])
    _, err = process.communicate(timeout=20)
    assert process.returncode == 5
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    assert err == f"gemb: rank {rank} was killed by {name}{hint}; --resume auto goes on\n"
    assert not any(Path(f"/proc/{other}").exists() for other in ranks.values())


def test_a_rank_that_hangs_does_not_keep_the_others(recipe, tmp_path):
    run = tmp_path / "run"
    process = endless(recipe, run)
    wait_for_steps(run, process)
    ranks = ranks_of(process.pid)
    os.kill(ranks[0], signal.SIGSTOP)  # it cannot see that the other one goes
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 5
    assert err.startswith("gemb: rank 1 was killed by SIGKILL"), err
    assert not Path(f"/proc/{ranks[0]}").exists()


def test_the_processes_end_with_the_one_that_started_them(recipe, tmp_path):
    run = tmp_path / "run"
    process = endless(recipe, run)
    wait_for_steps(run, process)
    ranks = ranks_of(process.pid)
    process.kill()
    process.communicate(timeout=SOON_S)
    until = time.monotonic() + SOON_S
    while any(Path(f"/proc/{rank}").exists() for rank in ranks.values()):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_rank_that_fails_ends_the_run_with_its_line(recipe, tmp_path):
    answer = gemb(
        *("train", str(recipe), "optimizer.lr=1e30", "optimizer.warmup_fraction=0"),
        *("-o", str(tmp_path / "run"), "-q", "--nproc", "2"),
    )
    assert answer.returncode == 5
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert answer.stderr.startswith("gemb: rank "), answer.stderr
    assert " failed: step 2: " in answer.stderr
    assert "not finite" in answer.stderr


def test_wrong_data_is_told_as_by_one_process(recipe, tmp_path):
    words = ["train", str(recipe), "data.0.path=nowhere.jsonl", "-o", str(tmp_path / "run"), "-q"]
    one, two = gemb(*words), gemb(*words[:3], "-o", str(tmp_path / "b"), "-q", "--nproc", "2")
    assert (one.returncode, two.returncode) == (2, 2)
    assert two.stderr == one.stderr
    assert two.stderr.count("\n") == 1


def test_the_verdict_is_printed_once(recipe, tmp_path):
    answer = gemb(
        *("train", str(recipe), "eval.data=builtin:tiny", "optimizer.lr=1e-9"),
        *("-o", str(tmp_path / "run"), "-q", "--nproc", "2"),
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("VERDICT TIE ")
    assert answer.stdout.count("\n") == 1


def told_in(folder: Path, monkeypatch: pytest.MonkeyPatch, rank: int, error: GembError) -> int:
    """Hand over an end as a process of this rank does, and return the code that it leaves with."""
    monkeypatch.setenv("GEMB_OUTCOMES", str(folder))
    monkeypatch.setenv("RANK", str(rank))
    code, line = hand_over(error.exit_code, str(error), error)
    assert line == ""
    return code


def test_a_regression_that_the_first_process_found_is_the_runs_answer(tmp_path, monkeypatch):
    line = "VERDICT REGRESSION ndcg@10 0.5 → 0.4"
    # 0, so that the agent does not take it for a failure and end the others.
    assert told_in(tmp_path, monkeypatch, 0, NegativeAnswer(line)) == 0
    with pytest.raises(NegativeAnswer) as caught:
        end_as(Ended(), outcomes(tmp_path), tmp_path)
    assert str(caught.value) == line


def test_the_cause_is_told_and_not_what_the_others_saw_of_it(tmp_path, monkeypatch):
    assert told_in(tmp_path, monkeypatch, 0, OtherProcessFailed("it broke")) == 5
    assert told_in(tmp_path, monkeypatch, 1, GembError("step 7: the loss is not finite")) == 5
    with pytest.raises(GembError) as caught:
        end_as(Ended(failed={0: 5, 1: 5}), outcomes(tmp_path), tmp_path)
    assert str(caught.value) == "rank 1 failed: step 7: the loss is not finite"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def test_machines_that_meet_share_the_ranks_out_between_them():
    address = f"localhost:{free_port()}"
    with ThreadPoolExecutor(3) as pool:
        meetings = list(pool.map(lambda count: launch.meet(address, 3, count), (1, 2, 4)))
    assert [meeting.world_size for meeting in meetings] == [7] * 3
    assert sum(meeting.is_host for meeting in meetings) == 1
    ranks = [
        rank
        for meeting, count in zip(meetings, (1, 2, 4), strict=True)
        for rank in range(meeting.first_rank, meeting.first_rank + count)
    ]
    assert sorted(ranks) == list(range(7))
    with ThreadPoolExecutor(3) as pool:  # the one that holds the store waits for the others
        list(pool.map(lambda meeting: meeting.leave(3), meetings))


def test_machines_that_do_not_come_are_told(monkeypatch):
    monkeypatch.setattr(launch, "_MEETING_S", 0.3)
    address = f"localhost:{free_port()}"
    with pytest.raises(GembError, match=f"the 2 machines did not meet at {address}: 1 of them"):
        launch.meet(address, 2, 1)


@pytest.mark.parametrize("address", ["nowhere", ":1", "localhost:", "localhost:x", "a:70000"])
def test_a_meeting_without_host_and_port_is_refused(address):
    with pytest.raises(UsageError, match="HOST:PORT, a free port of one of the machines"):
        launch.meet(address, 2, 1)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--nproc", "16"], "batch.pairs=8 is less than the 16 processes that share it"),
        (["--nproc", "0"], "'0' is neither auto nor a number from 1 on"),
        (["--nnodes", "2"], "--nnodes needs --rdzv HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused(options, line, recipe, tmp_path):
    answer = gemb("train", str(recipe), "-o", str(tmp_path / "run"), *options)
    assert answer.returncode == 2
    assert line in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_batch_file_runs_the_command_and_queues_the_job_again_on_75(recipe, tmp_path):
    answer = gemb("recipes", "cp", "slurm.sh", "job.sh", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    text = (tmp_path / "job.sh").read_text()
    for line in ("--nodes=1", "--gpus-per-node=8", "--signal=USR1@300", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {
        "scontrol": '[ "$1" = show ] && printf "node7\\nnode8\\n"; echo "$@" >> scontrol.log',
        "srun": 'printf "%s\\n" "$@" > srun.log; exit 75',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    ran = subprocess.run(
        ["bash", "job.sh", str(recipe), "optimizer.lr=1e-5", "-o", "a run", "-q"],
        cwd=tmp_path,
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "4",
        },
        check=False,
    )
    assert ran.returncode == 75
    words = (tmp_path / "srun.log").read_text().splitlines()
    command = words[words.index("gemb") :]
    assert command == [
        *("gemb", "train", str(recipe), "optimizer.lr=1e-5", "-o", "a run", "-q"),
        *("--nnodes", "2", "--nproc", "4", "--rdzv", "node7:29500", "--resume", "auto"),
    ]
    assert (tmp_path / "scontrol.log").read_text().splitlines()[-1] == "requeue 42"
