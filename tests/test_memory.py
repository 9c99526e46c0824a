"""Memory that serves one result after the other, and copies from files into any place of it."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import xtc2_runs as runs
from hypothesis import given, settings
from hypothesis import strategies as st

from lcls_dask.formats import memory
from lcls_dask.formats.xtc2 import kernels
from lcls_dask.formats.xtc2.layout import END_RUN
from lcls_dask.formats.xtc2.writer import StreamWriter, shapes_data

SIZE = 3 << 20


@pytest.fixture(autouse=True)
def nothing_idle() -> None:
    gc.collect()
    memory._idle.clear()


def test_memory_serves_again_when_its_last_array_is_gone() -> None:
    first = memory.empty(SIZE)
    view = first[10:20].view(np.uint16)
    address = first.ctypes.data
    del first
    assert memory.empty(SIZE).ctypes.data != address, "a view still lies in it"
    del view
    assert address in {memory.empty(SIZE).ctypes.data, memory.empty(SIZE - 5).ctypes.data}


def test_large_results_begin_at_a_page() -> None:
    assert all(memory.empty(size).ctypes.data % 4096 == 0 for size in (1 << 20, SIZE, SIZE + 17))


def test_what_waits_is_bounded() -> None:
    lent = [memory.empty(100 << 20) for _ in range(4)]
    del lent
    assert 0 < sum(m.nbytes for m in memory._idle) <= memory.IDLE


def test_threads_never_share_memory() -> None:
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            mine = memory.empty(1 << 20)
            mine[:64] = number
            if (mine[:64] != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def frames_with_gaps(tmp_path: Path) -> Path:
    """Energies of 30 events, and frames of 128 KiB of every third."""
    runs.simple_run(tmp_path, range(30))
    cameras = StreamWriter(tmp_path, "tmosim01", 1, 1, smalldata=False)
    cameras.configure(runs.ts(-9), [runs.CAM, runs.INFO])
    cameras.begin_run(runs.ts(-8), names=runs.INFO)
    for event in range(0, 30, 3):
        image = np.full((256, 256), event + 1, np.uint16)
        cameras.event(runs.ts(event), shapes_data(runs.CAM, {"image": image, "gain": 0}))
    cameras.transition(END_RUN, runs.ts(10**6))
    cameras.close()
    return tmp_path


def test_absent_readings_are_zeros_in_used_memory(frames_with_gaps: Path) -> None:
    """What a process read before, of any experiment, must not show where a reading is absent."""
    with xr.open_dataset(frames_with_gaps, engine="lcls") as run:
        pixels, present = run["cam.raw.image"], run["cam.raw.present"].values
        assert pixels.nbytes >= memory.LEAST
        assert present.any()
        assert not present.all()
        for _ in range(3):
            dirty = memory.empty(pixels.nbytes)
            dirty[:] = 255
            del dirty
            values = pixels.values
            assert not values[~present].any()
            assert (values[present] != 0).all()
            del values


@pytest.fixture(scope="module")
def scribble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scribble") / "bytes"
    path.write_bytes(np.random.default_rng(5).integers(0, 256, 1 << 20, np.uint8).tobytes())
    return path


@given(
    position=st.integers(0, 1 << 19),
    size=st.sampled_from([0, 1, 100, 16383, 16384, 20000, 1 << 18, (1 << 18) + 1, 300_001, 1 << 19]),
    behind=st.integers(-70, 70),
    before=st.integers(0, 1 << 19),
)
@settings(max_examples=150, deadline=None)
def test_any_place_of_a_file_into_any_place_of_memory(
    scribble: Path, position: int, size: int, behind: int, before: int
) -> None:
    """Also where the target lies a little behind the source within a page, which goes another way."""
    data = np.fromfile(scribble, np.uint8)
    out = np.full(size + 3 * 4096, 7, np.uint8)
    at = 4096 + (position + behind - out.ctypes.data) % 4096
    fd = os.open(scribble, os.O_RDONLY)
    try:
        reader = kernels.reader(fd, data.size)
        assert kernels._copy(reader, before, 12, np.empty(12, np.uint8), 0) == kernels.OK  # somewhere else first
        assert kernels._copy(reader, position, size, out, at) == kernels.OK
        assert kernels._copy(reader, data.size - 5, 6, out, 0) == kernels.TRUNCATED
    finally:
        os.close(fd)
    np.testing.assert_array_equal(out[at : at + size], data[position : position + size])
    assert (out[:at] == 7).all()
    assert (out[at + size :] == 7).all()
