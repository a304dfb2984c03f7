from __future__ import annotations

import pytest

from gemb.errors import UsageError
from gemb.texts.records import Record
from gemb.texts.shards import Shard, shard


def test_shards_share_all_rows_and_keep_their_ids() -> None:
    records: list[Record | None] = [Record(number, "") for number in range(1, 11)]
    records.insert(4, None)
    parts = [list(Shard(index, 3).of(records)) for index in (1, 2, 3)]
    ids = [[one.id for one in part if one] for part in parts]
    assert ids == [[1, 4, 7, 10], [2, 5, 8], [3, 6, 9]]
    assert all(None in part for part in parts)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TASK_ID": "7", "TASK_MIN": "5", "TASK_COUNT": "4"}, Shard(3, 4)),
        ({"TASK_ID": "9", "TASK_MIN": "5", "TASK_COUNT": "4", "TASK_STEP": "2"}, Shard(3, 4)),
    ],
)
def test_auto_reads_a_slurm_array(environment: dict[str, str], expected: Shard) -> None:
    variables = {f"SLURM_ARRAY_{name}": value for name, value in environment.items()}
    assert shard("auto", variables) == expected


def test_auto_reads_slurm_tasks_and_multiplies_them_with_the_array() -> None:
    tasks = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    assert shard("auto", tasks) == Shard(2, 2)
    array = {f"SLURM_ARRAY_TASK_{k}": v for k, v in (("ID", "2"), ("MIN", "0"), ("COUNT", "3"))}
    assert shard("auto", tasks | array) == Shard(6, 6)


def test_auto_reads_kubernetes_and_needs_the_count() -> None:
    variables = {"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "16"}
    assert shard("auto", variables) == Shard(1, 16)
    with pytest.raises(UsageError, match="JOB_COMPLETIONS is not set; set it"):
        shard("auto", {"JOB_COMPLETION_INDEX": "0"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "write I/N"),
        ("a/b", "write I/N"),
        ("0/4", "from 1 to N"),
        ("5/4", "from 1 to N"),
        ("auto", "neither SLURM_ARRAY_TASK_ID, SLURM_PROCID nor JOB_COMPLETION_INDEX is set"),
    ],
)
def test_a_wrong_shard_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shard(text, {})
