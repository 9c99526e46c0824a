"""Merging streams of timestamps is what numpy's union says, for any streams and any size of blocks."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lcls_dask.formats.merge import merge_timestamps

stamps = st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1), st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]))
streams = st.lists(st.lists(stamps, max_size=30, unique=True).map(sorted), max_size=5)


def merged(streams: list[list[int]], block: int) -> tuple[list[int], list[list[bool]]]:
    arrays = [np.array(stream, np.uint64) for stream in streams]
    parts = list(merge_timestamps(arrays, block=block))
    assert all(0 < part.size <= block for part, _ in parts)
    union = [int(t) for part, _ in parts for t in part]
    members: list[Any] = [[] for _ in streams]
    for _, some in parts:
        for s, column in enumerate(some):
            members[s] += column.tolist()
    return union, members


@given(streams, st.sampled_from([1, 2, 3, 7, 64]))
@settings(max_examples=200, deadline=None)
def test_union_and_members(streams: list[list[int]], block: int) -> None:
    union, members = merged(streams, block)
    assert union == sorted(set().union(*streams))
    for stream, column in zip(streams, members, strict=True):
        assert [t for t, there in zip(union, column, strict=True) if there] == stream


def test_nothing() -> None:
    assert merged([], 4) == ([], [])
    assert merged([[], []], 4) == ([], [[], []])


def test_blocks_change_nothing() -> None:
    rng = np.random.default_rng(0)
    several = [sorted(rng.choice(5000, size, replace=False).tolist()) for size in (4000, 100, 0, 1700)]
    expected = merged(several, 1 << 17)
    for block in (1, 13, 128, 4000):
        assert merged(several, block) == expected


def test_memory_maps_are_read_a_block_at_a_time(tmp_path: Any) -> None:
    class Watched:
        """An array that tells how much was asked of it at once."""

        def __init__(self, values: np.ndarray[Any, Any]) -> None:
            self.values, self.most = values, 0

        def __getitem__(self, key: slice) -> np.ndarray[Any, Any]:
            part = self.values[key]
            self.most = max(self.most, part.size)
            return part

    watched = [Watched(np.arange(0, 10_000, step, dtype=np.uint64)) for step in (1, 3)]
    total = sum(part.size for part, _ in merge_timestamps(watched, block=100))  # type: ignore[arg-type]
    assert total == 10_000
    assert [w.most for w in watched] == [100, 100]
