"""The whole chain for a run: frames, peaks, hits, crystals, reflections, merged intensities, in a directory.

Blocks of frames are independent tasks, each of which keeps its result in a file. What is finished is not done again,
so an interrupted run goes on where it was; the results of all blocks are put together at the end.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed

from ..access.run import Run
from ..errors import ArgumentError, FormatError, SelectionError, StorageError, TargetExistsError
from .blocks import Block, read_photons, reduce_block, writing
from .files import whole_file
from .frames import fits, present_of
from .recipe import Settings, Tools
from .results import GEOMETRY, HITS, HKL, MTZ, RESULT, SETTINGS, STREAM, finish, open_result
from .runs import frames_of

Array = np.ndarray[Any, np.dtype[Any]]

#: Frames of a task: a powder pattern of each is kept, of 48 bytes a pixel, so few frames to a task would write much.
FEWEST, MOST, SHARE = 32, 256, 16


def analyse(run: Run, out: str | Path, settings: Settings) -> xr.DataTree:
    """Reduce a run's area detector on Dask, and write what comes out.

    Results of blocks of frames that are in `out` already, of the same run, settings and contents of files, are not
    made again. A frame that fails is marked as bad, and the run goes on.

    Parameters
    ----------
    run : Run
    out : str or Path
        Directory, which workers must see at the same place, as they must the files that the settings name.
    settings : Settings

    Returns
    -------
    xarray.DataTree
        What ``sfx.zarr`` holds: `frames`, `peaks` of all frames; `crystals` of hits, `reflections` of crystals;
        `powder/hits`, `powder/misses`; `merged` and `figures`, where there are crystals.

    Raises
    ------
    SelectionError
        The run has no area detector, or several.
    ArgumentError
        A setting is out of range, the run is empty, frames do not fit geometry or constants, or no frame could be used.
    TargetExistsError
        `out` has results of another run, of other settings or by another version, or what is no result of this.
    StorageError
        A file could not be written.

    Examples
    --------
    >>> settings = Settings("jungfrau4M.geom", (79.1, 79.1, 37.9, 90, 90, 90), "P43212", "constants.h5")
    >>> result = analyse(run, "out", settings)  # doctest: +SKIP
    >>> float(result["figures/cc_half_overall"])  # doctest: +SKIP
    0.98
    """
    out = Path(out).absolute()
    tools = Tools.of(settings, run.number)
    blocks = blocks_of(run, out, tools)
    _begin(out, run, tools, blocks)
    if not (out / RESULT).exists():
        _reduce(blocks, tools)
        finish(run, out, tools, blocks)
    _tidy(out, blocks)
    return open_result(out)


def blocks_of(run: Run, out: Path, tools: Tools) -> list[Block]:
    """Blocks of a run's frames.

    Parameters
    ----------
    run : Run
    out : Path
    tools : Tools

    Returns
    -------
    list of Block

    Raises
    ------
    ArgumentError
        There are no frames, or they do not fit geometry or constants.
    """
    settings = tools.settings
    frames = frames_of(run, settings.detector)
    fits(frames, tools.geometry.shape, "the geometry")
    if tools.calibration is not None and frames.dtype != np.uint16:
        raise ArgumentError(f"{frames.name}: is {frames.dtype}, and constants are for raw frames of uint16")
    events = frames.sizes["event"]
    if not events:
        raise ArgumentError(f"{run.path}: has no events")
    there = frames["present"].attrs if "present" in frames.coords else {}
    length = settings.block or int(np.clip(events // SHARE, FEWEST, MOST))
    coords = xr.Dataset(
        coords={
            "timestamp": ("event", frames["timestamp"].values, frames["timestamp"].attrs),
            "frame": ("event", np.arange(events), {"units": "1", "long_name": "event of the run"}),
            # a detector of one segment tells it by event alone
            "present": (("event", "segment"), present_of(frames.coords.to_dataset(), frames.shape[:2]), there),
            "segment": frames["segment"].values if "segment" in frames.coords else np.arange(frames.sizes["segment"]),
        }
    )
    digest = f"{run.snapshot[:12]}-{tools.digest}"
    edges = [*range(0, events, length), events]
    told = run.source.ref, run.path, run.number, str(frames.name), settings, digest, out
    return [Block(*told, coords.isel(event=slice(first, last))) for first, last in pairwise(edges)]


def photons_of(run: Run, settings: Settings, event: int) -> Array:
    """One calibrated frame.

    Parameters
    ----------
    run : Run
    settings : Settings
    event : int
        Of the run.

    Returns
    -------
    (segment, row, column) float32

    Raises
    ------
    SelectionError
        The run has no such event.

    Examples
    --------
    >>> photons_of(run, settings, 7).shape  # doctest: +SKIP
    (8, 512, 1024)
    """
    tools = Tools.of(settings, run.number)
    block = next((one for one in blocks_of(run, Path(), tools) if one.first <= event < one.last), None)
    if block is None:
        raise SelectionError(f"event {event} was asked for, the run has {run.events}")
    made: Array = read_photons(block, tools, block.coords.isel(event=[event - block.first]))[0]
    return made


def _begin(out: Path, run: Run, tools: Tools, blocks: Sequence[Block]) -> None:
    """Write down what the results are of, or compare it with what is written down."""
    told = {
        "experiment": run.experiment, "run": run.number, "snapshot": run.snapshot,
        "events": blocks[-1].last, "frames of a task": blocks[0].last, **tools.described(),
    }  # fmt: skip
    path = out / SETTINGS
    if not path.exists():
        for name in ("blocks", "hits", GEOMETRY, HITS, STREAM, MTZ, HKL, RESULT):
            if (out / name).exists():
                raise TargetExistsError(f"{out / name}: is there already; choose another directory with --out")
        with writing(path):
            out.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as place:
                place.write_text(json.dumps(told, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text())
        other = next(((key, before.get(key), value) for key, value in told.items() if before.get(key) != value), None)
    except (ValueError, AttributeError):
        raise FormatError(
            f"{path}: is no file of settings; remove it, or choose another directory with --out"
        ) from None
    if other is not None:
        key, old, new = other
        raise TargetExistsError(
            f"{out}: has results made with other settings ({key} was {old}, and is {new}); choose another directory "
            "with --out, or remove that one"
        )


def _reduce(blocks: Sequence[Block], tools: Tools) -> None:
    """Make what is missing."""
    for path in {blocks[0].path, *([blocks[0].cxi] if tools.settings.cxi else [])}:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
    work: Any = delayed(reduce_block, pure=False)
    together: Any = compute
    together(*(work(block, tools.digest) for block in blocks if not block.path.exists()))
    missing = [block.path for block in blocks if not block.path.exists()]
    if missing:
        raise StorageError(f"{missing[0]}: was written by a worker and is not here; all must see {missing[0].parent}")


def _tidy(out: Path, blocks: Sequence[Block]) -> None:
    """Remove what blocks kept, and what processes that were killed left behind; nothing else."""
    kept, digest = blocks[0].path.parent, blocks[0].digest
    with suppress(OSError):  # where somebody else has put something there, or may only read it
        for path in (*kept.glob(f"*{digest}-*.h5"), *(out / "hits").glob(".*.cxi")):
            path.unlink(missing_ok=True)
        for part in out.glob(f".{RESULT}-*"):
            shutil.rmtree(part, ignore_errors=True)
        kept.rmdir()
