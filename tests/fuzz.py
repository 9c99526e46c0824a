"""Mutated run files: whatever is done to them, they are read, or refused with an `LclsError`.

``python -m tests.fuzz 10000`` tries so many, ``--seed`` says from which on; one seed is one file, always the same.
"""

import argparse
import ctypes
import faulthandler
import mmap
import os
import shutil
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter, deque
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m`; pytest has done it already

from xtc2_runs import full_run, read_all, simple_run

from lcls_dask.errors import LclsError
from lcls_dask.formats import open_source
from lcls_dask.formats.xtc2 import kernels
from lcls_dask.formats.xtc2.layout import DATA, NAME_INFO_BYTES, NAMES, PARENT, SHAPES, SHAPES_DATA

SECONDS = 1.0
#: Peak of what Python and NumPy allocate: so many bytes, and so many for each byte of the run's files.
CONSTANT, PER_BYTE = 32 << 20, 400

_INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    5,
    11,
    12,
    13,
    24,
    255,
    256,
    0x7FFF,
    0x8000,
    0xFFFF,
    1 << 20,
    0x7FFFFFFF,
    1 << 31,
    0xFFFFFFFF,
)


_held: deque[mmap.mmap] = deque(maxlen=50)


def guarded(fd: int, end: int) -> np.void:
    """`kernels.reader` whose memory lies between pages that may not be touched.

    Loops read by addresses, of which numba checks none.
    """
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    # a guard, the record, a guard, the buffer and the page behind it that `skips` may look at, a guard
    _held.append(mmap.mmap(-1, 6 * page + kernels._BUFFER))
    memory = np.frombuffer(_held[-1], np.uint8)
    begin = memory.ctypes.data
    file = memory[page : page + kernels._FILE.itemsize].view(kernels._FILE)
    file[0] = (fd, end, 0, 0, page, begin + 3 * page)
    for at in (0, 2 * page, memory.size - page):
        assert libc.mprotect(begin + at, page, 0) == 0, os.strerror(ctypes.get_errno())
    record: np.void = file[0]
    return record


class FuzzError(AssertionError):
    """A mutated file was too much for the reader."""


@cache
def originals() -> tuple[dict[str, bytes], ...]:
    """Small whole runs, as the bytes of their files."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for k, version in enumerate([(1, 2, 3), (2, 0, 0), (3, 0, 0)]):
            full_run(base / f"full{k}", 7, seed=k, smalldata=k == 1, hsd=version)
        simple_run(base / "simple", range(5))
        simple_run(base / "small", range(5), smalldata=True)
        for run in sorted(base.iterdir()):
            found.append({str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.xtc2"))})
    return tuple(found)


def headers(data: bytes) -> list[int]:
    """Where the file's structure is: u32 that say how long, what and where something is."""
    at, found = 0, []
    while at + 24 <= len(data):
        extent = struct.unpack_from("<I", data, at + 20)[0]
        found += [at, at + 4, at + 8, at + 12, at + 16, at + 20]
        found += _inside(data, at + 24, at + 12 + extent)
        at += 12 + extent
    return found


def _inside(data: bytes, at: int, end: int) -> list[int]:
    found = []
    while at + 12 <= end:
        kind, extent = struct.unpack_from("<HI", data, at + 6)
        found += [at, at + 4, at + 8]
        if kind in (PARENT, SHAPES_DATA):
            found += _inside(data, at + 12, at + extent)
        elif kind == SHAPES:
            found += range(at + 12, at + extent - 3, 4)
        elif kind == DATA:
            found += range(at + 12, min(at + 44, at + extent - 3), 4)
        elif kind == NAMES:
            found += [at + 12, at + 16, at + 272, at + 784, at + 1040, at + 1044]
            for name in range(at + 12 + NAME_INFO_BYTES, at + extent, 524):
                found += [name + 260, name + 516, name + 520]
        at += max(12, extent)
    return found


def mutate(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A file with something done to it."""
    out = bytearray(data)
    structure = headers(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 8]))):
        if len(out) < 4:
            break
        at = int(rng.integers(0, len(out)))
        match int(rng.integers(0, 12)):
            case 0:
                del out[at:]
            case 1:
                out[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                out[at] = int(rng.integers(0, 256))
            case 3:
                del out[at : at + int(rng.choice([1, 2, 4, 12, 24, 100]))]
            case 4:
                out[at:at] = out[at : at + int(rng.choice([1, 4, 12, 24, 68, 300]))]
            case 5:
                out[at:] = others[int(rng.integers(0, len(others)))][at:]
            case 6:
                out += rng.bytes(int(rng.integers(1, 60)))
            case _ if structure:
                at = structure[int(rng.integers(0, len(structure)))]
                if at + 4 <= len(out):
                    old = struct.unpack_from("<I", out, at)[0]
                    near = (old + int(rng.choice([-12, -4, -1, 1, 4, 12, 24]))) & 0xFFFFFFFF
                    value = near if rng.random() < 0.3 else int(rng.choice(_INTERESTING))
                    size = int(rng.choice([1, 2, 4]))
                    out[at : at + size] = value.to_bytes(4, "little")[:size]
    return bytes(out)


def case(seed: int, folder: Path) -> int:
    """Write the run of a seed; how many bytes it has."""
    rng = np.random.default_rng(seed)
    files = dict(originals()[seed % len(originals())])
    for name in rng.choice(list(files), int(rng.integers(1, len(files) + 1)), replace=False):
        files[name] = mutate(files[name], rng, list(files.values()))
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return sum(map(len, files.values()))


def read_everything(path: Path) -> str:
    """What became of opening, reading and validating a run: ``"read"`` or the name of the error.

    Raises
    ------
    FuzzError
        Something else than an error of this package came out, or one that is no single line.
    """
    try:
        source = open_source(path)
    except LclsError as error:
        return _told(error)
    outcome = "read"
    try:
        read_all(source)
    except LclsError as error:
        outcome = _told(error)
    try:
        for finding in source.validate():
            if "\n" in finding.message:
                raise FuzzError(f"not one line: {finding.message!r}")
    except LclsError as error:
        outcome = f"validate: {_told(error)}"
    source.close()
    return outcome


def _told(error: LclsError) -> str:
    text = str(error)
    if not text or "\n" in text or len(text) > 2000:
        raise FuzzError(f"not a message of one line: {text!r}")
    return type(error).__name__


def attempt(seed: int, folder: Path) -> str:
    """Mutate, read, and hold time and memory to their limits."""
    cache_directory, run = folder / "cache", folder / "run"
    for _ in range(2):  # a first time may compile loops for a kind of array that did not come before
        for part in (cache_directory, run):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        os.environ["LCLS_INDEX_CACHE"] = str(cache_directory)
        size = case(seed, run)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        started = time.process_time()
        try:
            outcome = read_everything(run)
        except Exception as error:
            raise FuzzError(f"seed {seed}: {type(error).__name__}: {error}") from error
        took = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1] - before
        if took <= SECONDS:
            break
    if took > SECONDS:
        raise FuzzError(f"seed {seed}: took {took:.1f} s")
    if peak > CONSTANT + PER_BYTE * size:
        raise FuzzError(f"seed {seed}: took {peak >> 20} MiB of memory for files of {size >> 10} KiB")
    outside = [p for p in folder.rglob("*") if p.parent == folder and p not in (cache_directory, run)]
    if outside:
        raise FuzzError(f"seed {seed}: wrote {outside}")
    return outcome


def fuzz(count: int, first: int = 0) -> Counter[str]:
    """Try `count` seeds; how often each outcome came."""
    outcomes: Counter[str] = Counter()
    started_here = not tracemalloc.is_tracing()
    if started_here:
        tracemalloc.start(1)
    environment = os.environ.get("LCLS_INDEX_CACHE")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for run in originals():
                read_original(run, Path(folder))
            place = Path(folder) / "case"
            place.mkdir()
            for seed in range(first, first + count):
                faulthandler.dump_traceback_later(
                    60, exit=True, file=sys.__stderr__
                )  # compiled loops can't be interrupted otherwise
                outcomes[attempt(seed, place)] += 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        if started_here:
            tracemalloc.stop()
        if environment is None:
            os.environ.pop("LCLS_INDEX_CACHE", None)
        else:
            os.environ["LCLS_INDEX_CACHE"] = environment
    return outcomes


def read_original(files: dict[str, bytes], folder: Path) -> None:
    """The files that mutations start from are whole: reading them compiles all loops, and finds nothing wrong."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        for name, data in files.items():
            (Path(run) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(run) / name).write_bytes(data)
        outcome = read_everything(Path(run))
        if outcome != "read":
            raise FuzzError(f"an original could not be read: {outcome}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--guard", action="store_true", help="end the process where a loop leaves its buffer")
    chosen = parser.parse_args()
    if chosen.guard:
        kernels.reader = guarded
    started = time.perf_counter()
    outcomes = fuzz(chosen.count, chosen.seed)
    print(f"{chosen.count} files in {time.perf_counter() - started:.0f} s")
    for outcome, times in outcomes.most_common():
        print(f"{times:8} {outcome}")


if __name__ == "__main__":
    main()
