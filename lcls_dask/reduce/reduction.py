"""What a reduction is, and the three ways to do one.

A reduction knows how to make a partial result of a block of events, how to combine partial results, and how to make
the result of the last one. Partial results may be combined in any order and any grouping, so it does not matter where
events are, how many there are to a block, or when they come.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dask.delayed import Delayed, delayed

from ..errors import ArgumentError

P = TypeVar("P")
R = TypeVar("R")

#: Partial results that one task combines.
SPLIT_EVERY = 8


@dataclass(frozen=True)
class Reduction(Generic[P, R]):
    """A reduction, described once.

    Attributes
    ----------
    chunk : callable
        Makes a partial result of a block of events; it is called with whatever one block consists of.
    combine : callable
        Makes one partial result of several, of which there is at least one.
    finalise : callable
        Makes the result of a partial result.
    """

    chunk: Callable[..., P]
    combine: Callable[[Sequence[P]], P]
    finalise: Callable[[P], R]

    def __call__(self, blocks: Iterable[tuple[Any, ...]]) -> R:
        """Reduce blocks one after the other, here and now.

        Parameters
        ----------
        blocks : iterable of tuple
            Arguments of `chunk`, for each block.

        Returns
        -------
        object
            The result.
        """
        running = Running(self)
        for block in blocks:
            running.update(*block)
        return running.result()

    def lazily(self, blocks: Iterable[tuple[Any, ...]]) -> Delayed:
        """Reduce blocks on Dask, by a tree of tasks.

        Parameters
        ----------
        blocks : iterable of tuple
            Arguments of `chunk`, for each block; they may be Delayed.

        Returns
        -------
        Delayed
            The result.
        """
        level = [delayed(self.chunk, pure=True)(*block) for block in blocks]
        if not level:
            raise ArgumentError("there is nothing to reduce: give at least one block, which may be empty")
        while len(level) > 1:
            level = [
                delayed(self.combine, pure=True)(level[i : i + SPLIT_EVERY]) for i in range(0, len(level), SPLIT_EVERY)
            ]
        result: Delayed = delayed(self.finalise, pure=True)(level[0])
        return result


class Running(Generic[P, R]):
    """A reduction that goes on as blocks come, such as those of ``run.follow()``.

    Parameters
    ----------
    reduction : Reduction

    Examples
    --------
    >>> mean = Reduction(
    ...     chunk=lambda values: (len(values), sum(values)),
    ...     combine=lambda parts: (sum(n for n, _ in parts), sum(total for _, total in parts)),
    ...     finalise=lambda part: part[1] / part[0],
    ... )
    >>> running = Running(mean)
    >>> running.update([1, 2]).update([6]).result()
    3.0
    >>> mean([([6],), ([1, 2],)]), mean.lazily([([1],), ([6, 2],)]).compute()
    (3.0, 3.0)
    """

    def __init__(self, reduction: Reduction[P, R]) -> None:
        self._reduction = reduction
        self._part: P | None = None

    def update(self, *block: Any) -> "Running[P, R]":
        """Take in one more block.

        Parameters
        ----------
        *block : object
            Arguments of the reduction's `chunk`.

        Returns
        -------
        Running
            Itself.
        """
        return self._take(self._reduction.chunk(*block))

    def merge(self, other: "Running[P, R]") -> "Running[P, R]":
        """Take in what another one, of the same reduction, has taken in.

        Parameters
        ----------
        other : Running

        Returns
        -------
        Running
            Itself.
        """
        return self if other._part is None else self._take(other._part)

    def _take(self, part: P) -> "Running[P, R]":
        self._part = part if self._part is None else self._reduction.combine([self._part, part])
        return self

    def result(self) -> R:
        """The result so far.

        Returns
        -------
        object

        Raises
        ------
        ArgumentError
            Nothing has been taken in.
        """
        if self._part is None:
            raise ArgumentError("there is no result yet: nothing has been taken in")
        return self._reduction.finalise(self._part)
