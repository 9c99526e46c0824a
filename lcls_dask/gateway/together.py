"""Small things that wait for a disk, carried out by one thread for many requests at a time.

To hand a request to a thread and its answer back costs more than to read 4 kB. So what comes while the thread is at
work waits for its next turn, and what it did in one turn is settled at once: one write for the audit, one wake-up of
the loop. Where the disk keeps it waiting, other threads help.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Generic, TypeVar

Task = TypeVar("Task")
Found = TypeVar("Found")
Result = TypeVar("Result")

#: Seconds after which a thread settles what it has done, and another one begins to help.
LATE = 0.002
#: Tasks that are settled together at most.
_MOST = 64


class Together(Generic[Task, Found, Result]):
    """Carries out tasks of one event loop, those that come together in one go.

    Parameters
    ----------
    pool : ThreadPoolExecutor
    threads : int
        How many of its threads may be at work here.
    carry_out : callable
        Does one task; in a thread.
    settle : callable
        Makes results of several tasks and what was found for each; in the same thread.

    Examples
    --------
    >>> import asyncio
    >>> async def squares(pool):
    ...     together = Together(pool, 2, lambda n: n * n, lambda pairs: [found for _, found in pairs])
    ...     return await asyncio.gather(*(together.do(n) for n in range(4)))
    >>> with ThreadPoolExecutor() as pool:
    ...     asyncio.run(squares(pool))
    [0, 1, 4, 9]
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        threads: int,
        carry_out: Callable[[Task], Found],
        settle: Callable[[Sequence[tuple[Task, Found]]], Sequence[Result]],
    ) -> None:
        self._pool, self._threads = pool, threads
        self._carry_out, self._settle = carry_out, settle
        self._waiting: deque[tuple[Task, asyncio.Future[Result]]] = deque()
        self._working = 0

    async def do(self, task: Task) -> Result:
        """Carry out a task."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((task, future))
        if not self._working:
            self._working = 1
            loop.call_soon(self._begin, loop)  # at the end of this turn, when all that have come with it wait here, too
        return await future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pool.submit(self._work, loop)
        loop.call_later(LATE, self._help, loop)

    def _help(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and 0 < self._working < self._threads:
            self._working += 1
            self._begin(loop)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """One turn of a thread."""
        futures: list[asyncio.Future[Result]] = []
        done: list[tuple[Task, Found]] = []
        begun = monotonic()
        try:
            while len(done) < _MOST and monotonic() - begun < LATE:
                try:
                    task, future = self._waiting.popleft()
                except IndexError:
                    break
                futures.append(future)
                done.append((task, self._carry_out(task)))
            results: Sequence[Result] | BaseException = self._settle(done)
        except BaseException as error:  # whoever waits must learn of it
            results = error
        loop.call_soon_threadsafe(self._deliver, loop, futures, results)

    def _deliver(
        self,
        loop: asyncio.AbstractEventLoop,
        futures: Sequence[asyncio.Future[Result]],
        results: Sequence[Result] | BaseException,
    ) -> None:
        for number, future in enumerate(futures):
            if future.done():  # cancelled
                continue
            if isinstance(results, BaseException):
                future.set_exception(results)
            else:
                future.set_result(results[number])
        self._working -= 1
        if self._waiting and not self._working:
            self._working = 1
            self._begin(loop)
