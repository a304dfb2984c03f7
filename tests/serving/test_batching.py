"""The queue in front of the encoder: what shares a batch, and what happens when it breaks."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from gemb.models.profile import ModelProfile
from gemb.serving.app import Service
from gemb.serving.batching import Batcher, Job
from gemb.serving.limits import Limits, estimated_tokens
from gemb.serving.refusals import Refused
from gemb.texts.records import Record


class Encoder:
    """Vectors of one component that is 1; what it was given is kept."""

    def __init__(self) -> None:
        self.profile = ModelProfile(
            dim=4,
            matryoshka_dims=(4,),
            max_tokens=100,
            closing_tokens=1,
            prompts={},
            dtype="fp32",
            fingerprint="0" * 16,
        )
        self.batches: list[list[int]] = []
        self.fails = False

    def tokenize(self, texts):
        return [np.arange(len(text), dtype=np.int32) for text in texts]

    def encode(self, batch):
        if self.fails:
            raise RuntimeError("broken")
        self.batches.append([len(ids) for ids in batch])
        vectors = np.zeros((len(batch), 4), np.float32)
        vectors[range(len(batch)), [len(ids) % 4 for ids in batch]] = 1
        return vectors


def jobs(encoder: Encoder, sizes: list[list[int]], **limits) -> list[Job]:
    """Submit texts of these lengths, all at once, and return the jobs when they are done."""

    async def run() -> list[Job]:
        batcher = Batcher(encoder, Limits(window_s=0.2, **limits))
        with batcher._changed:  # the thread waits until all are there
            submitted = [
                batcher.submit(
                    [Record(n, f"input[{n}]", "x" * size) for n, size in enumerate(part)], part
                )
                for part in sizes
            ]
        done = [await asyncio.wait_for(job.done, 10) for job in submitted]
        assert batcher.queued_tokens == 0
        batcher.close()
        assert not batcher.is_alive
        return done

    return asyncio.run(run())


def test_requests_share_batches_by_tokens_the_longest_first():
    encoder = Encoder()
    done = jobs(encoder, [[5, 9], [7], [3, 8, 2]], batch_tokens=1000)
    assert encoder.batches == [[9, 8, 7, 5, 3, 2]]
    for job, sizes in zip(done, [[5, 9], [7], [3, 8, 2]], strict=True):
        assert job.vectors.argmax(axis=1).tolist() == [size % 4 for size in sizes]
        assert job.tokens == sum(sizes)


def test_a_batch_has_no_more_tokens_than_it_may_and_each_request_its_share():
    encoder = Encoder()
    large, small = [11 + n % 7 for n in range(40)], [3]
    jobs(encoder, [large, small], batch_tokens=60)
    assert 3 in encoder.batches[0]
    assert max(map(sum, encoder.batches)) <= 60 + 17  # the last text may reach beyond
    assert sum(map(len, encoder.batches)) <= 41  # texts that are the same are computed once


def test_a_text_larger_than_a_batch_is_a_batch():
    encoder = Encoder()
    jobs(encoder, [[90], [80]], batch_tokens=10)
    assert sorted(encoder.batches) == [[80], [90]]


def test_a_large_request_shuts_out_no_small_one_and_is_not_shut_out():
    """A request is refused by what comes before it: of a large one, as much as it has itself."""

    async def run() -> None:
        batcher = Batcher(Encoder(), Limits(queued_tokens=1000))

        def submit(count: int) -> Job:
            return batcher.submit([Record(n, "", "x" * 10) for n in range(count)], [10] * count)

        with batcher._changed:  # nothing is computed meanwhile
            large = submit(3000)  # 30 times the queue: it finds none
            small = [submit(1) for _ in range(100)]  # each has 10 tokens of each other before it
            assert batcher.queued_tokens == 30_000 + 1000
            with pytest.raises(Refused, match="the queue is full: 1,010 tokens are before these"):
                submit(1)
            with pytest.raises(Refused, match="the queue is full: 31,000 tokens are before these"):
                submit(3000)
            for job in (large, *small[:50]):
                batcher.cancel(job)
            second = submit(3000)  # beside small ones that wait
            submit(1)
        await second.done
        batcher.close()

    asyncio.run(run())


def test_requests_are_done_in_the_order_of_their_sizes_whatever_came_first():
    encoder = Encoder()
    order: list[int] = []

    async def run() -> None:
        batcher = Batcher(encoder, Limits(batch_tokens=60))
        with batcher._changed:
            for count in (100, 1, 20, 3):
                records = [Record(n, "", f"{count} {n}".ljust(10)) for n in range(count)]
                job = batcher.submit(records, [10] * count)
                job.done.add_done_callback(lambda job: order.append(len(job.result().records)))
        while len(order) < 4:
            await asyncio.sleep(0)
        batcher.close()

    asyncio.run(run())
    assert order == [1, 3, 20, 100]


def test_an_encoder_that_fails_fails_its_requests_and_not_the_next():
    encoder = Encoder()

    async def run() -> None:
        batcher = Batcher(encoder, Limits())
        encoder.fails = True
        job = batcher.submit([Record(n, "", "x" * (n + 1)) for n in range(3)], [1, 1, 1])
        with pytest.raises(
            Exception, match="the backend fails on every text: RuntimeError: broken"
        ):
            await job.done
        assert batcher.queued_tokens == 0
        encoder.fails = False
        job = batcher.submit([Record(0, "", "abcd")], [1])
        assert (await job.done).vectors.argmax() == 0
        batcher.close()

    asyncio.run(run())


def test_a_request_that_is_cancelled_leaves_the_queue():
    encoder = Encoder()

    async def run() -> None:
        batcher = Batcher(encoder, Limits(batch_tokens=10))
        with batcher._changed:
            job = batcher.submit([Record(n, "", "x" * 9) for n in range(50)], [9] * 50)
            batcher.cancel(job)
        assert batcher.queued_tokens == 0
        job = batcher.submit([Record(0, "", "abc")], [3])
        await job.done
        assert encoder.batches == [[3]]
        batcher.close()

    asyncio.run(run())


def test_a_thread_that_has_ended_is_not_healthy():
    encoder = Encoder()

    async def run() -> None:
        service = Service.__new__(Service)
        service.is_ready = True
        service._batcher = Batcher(encoder, Limits())
        assert (await service.health(None)).status_code == 200
        service._batcher.close()
        with pytest.raises(Refused, match="not ready"):
            await service.health(None)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 10), ("abcd" * 5, 15), ("日本" * 10, 25), ("x" * 10_000, 100)]
)
def test_tokens_are_estimated_from_bytes(text, tokens):
    assert estimated_tokens(text, 100) == tokens
