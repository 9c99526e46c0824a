"""Small tasks carried out together: every one once, in few turns, with help where the disk is slow, errors told."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from lcls_dask.gateway.together import Together


def run(together: "Together[int, int, int]", count: int) -> list[int]:
    async def ask() -> list[int]:
        return await asyncio.gather(*(together.do(number) for number in range(count)))

    return asyncio.run(asyncio.wait_for(ask(), 30))


def test_what_comes_together_is_settled_together() -> None:
    turns: list[int] = []

    def settle(done: Sequence[tuple[int, int]]) -> list[int]:
        turns.append(len(done))
        return [found for _, found in done]

    with ThreadPoolExecutor(4) as pool:
        assert run(Together(pool, 4, lambda n: n * n, settle), 500) == [n * n for n in range(500)]
    assert sum(turns) == 500
    assert max(turns) > 1


def test_another_thread_helps_where_one_is_kept_waiting() -> None:
    both = Barrier(2, timeout=20)  # which nobody passes alone

    def slow(number: int) -> int:
        both.wait()
        return number

    with ThreadPoolExecutor(2) as pool:
        together = Together(pool, 2, slow, lambda done: [found for _, found in done])
        assert run(together, 2) == [0, 1]


def test_an_error_is_told_and_the_next_tasks_are_carried_out() -> None:
    def settle(done: Sequence[tuple[int, int]]) -> list[int]:
        if any(task == 13 for task, _ in done):
            raise ValueError("unlucky")
        return [found for _, found in done]

    async def ask(together: "Together[int, int, int]") -> int:
        with pytest.raises(ValueError, match="unlucky"):
            await together.do(13)
        return await together.do(14)

    with ThreadPoolExecutor(2) as pool:
        assert asyncio.run(ask(Together(pool, 2, lambda n: n, settle))) == 14
