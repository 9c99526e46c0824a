"""The demo's crystallography run: the whole chain, from frames to merged intensities, and what the truth says of it."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from ..access.run import Run
from ..sfx.blocks import Block
from ..sfx.cell import Cell, as_cell
from ..sfx.chain import analyse, blocks_of
from ..sfx.merging import pack, to_asu
from ..sfx.recipe import Settings, Tools
from ..sfx.results import MTZ, SETTINGS
from .page import Check
from .workers import Pass, kill_one

Array = np.ndarray[Any, Any]

#: Blocks that the frames are shared among, and frames that each has at least.
BLOCKS, FEWEST = 8, 4
#: Spots of this many photons must be found as peaks, within so many pixels.
BRIGHT_PHOTONS, NEAR_PIXELS = 150.0, 1.0
#: Orientations must be as near to the truth [degree], and merged intensities correlate with it like this.
NEAR_DEGREES, CORRELATION = 0.2, 0.7


@dataclass(frozen=True)
class Result:
    """What the chain wrote.

    Attributes
    ----------
    tree : xarray.DataTree
    mtz : bytes
        The file of merged intensities.
    """

    tree: xr.DataTree
    mtz: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and self.mtz == other.mtz and self.tree.identical(other.tree)

    __hash__ = None  # type: ignore[assignment]


def settings_of(path: Path, frames: int) -> Settings:
    """What the chain is told of a simulated run.

    Parameters
    ----------
    path : Path
        Of the run, and the files beside it.
    frames : int

    Returns
    -------
    Settings

    Examples
    --------
    >>> settings_of(Path("run1"), 300).block
    38
    """
    return Settings(
        str(path / "jungfrau4M.geom"), str(path / "lysozyme.cell"), "P43212", str(path / "constants.npz"), cxi=False,
        block=max(FEWEST, -(-frames // BLOCKS)),
    )  # fmt: skip


def reduce_run(
    client: Client, run: Run, out: Path, settings: Settings, *, halfway: Path | None = None, kill: bool = False
) -> Pass:
    """Work through the chain on the workers.

    Parameters
    ----------
    client : distributed.Client
    run : Run
    out : Path
        Directory for what it writes; of blocks that are there already, only the others are made.
    settings : Settings
    halfway : Path, optional
        Directory that gets what is there when half of the blocks are finished, as if the run had been broken off then.
    kill : bool
        Kill one worker with SIGKILL as soon as a quarter of the blocks is made.

    Returns
    -------
    Pass
        Of a `Result`.

    Examples
    --------
    >>> with two_workers() as client:  # doctest: +SKIP
    ...     reduce_run(client, run, Path("out"), settings_of(path, run.events)).result.tree
    """
    blocks = blocks_of(run, out, Tools.of(settings, run.number))
    missing = [block for block in blocks if not block.path.exists()]
    start = time.perf_counter()
    killed, finished = None, 0
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(analyse, run, out, settings)
        while not working.done() and (kill or halfway):
            made = [block for block in missing if block.path.exists()]
            if halfway is not None and len(made) >= (half := max(1, len(blocks) // 2)):
                _keep(out, made[:half], halfway)
                halfway = None
            if kill and len(made) >= len(missing) / 4:
                killed, finished, kill = kill_one(client), len(made), False
            time.sleep(0.002)
        tree = working.result()
    mtz = out / MTZ
    result = Result(tree, mtz.read_bytes() if mtz.exists() else b"")
    return Pass(result, time.perf_counter() - start, len(missing), killed, finished)


def _keep(out: Path, blocks: Sequence[Block], halfway: Path) -> None:
    """Make a directory as it is when only these blocks are finished."""
    place = halfway / blocks[0].path.relative_to(out).parent
    place.mkdir(parents=True)
    shutil.copy(out / SETTINGS, halfway)
    for block in blocks:
        os.link(block.path, place / block.path.name)


def check(truth: Path, result: Result) -> list[Check]:
    """Compare hits, peaks, orientations and intensities with the crystals that were simulated.

    Parameters
    ----------
    truth : Path
        Directory of ``truth.json`` and ``truth.zarr``.
    result : Result

    Returns
    -------
    list of Check

    Examples
    --------
    >>> check(Path("demo-out/sfx"), result)  # doctest: +SKIP
    """
    import zarr

    store = zarr.open_group(truth / "truth.zarr", mode="r")
    known = {name: np.asarray(array[...]) for name, array in store.arrays()}
    frames, crystals = (result.tree[name].to_dataset() for name in ("frames", "crystals"))
    cell = as_cell(crystals.attrs["cell"], crystals.attrs["space_group"])
    hits, found = np.flatnonzero(known["hit"]), np.flatnonzero(frames["hit"].values)
    seen, bright = _peaks_of_spots(result.tree["peaks"].to_dataset(), known)
    frame = np.repeat(crystals["frame"].values, np.diff(crystals["offset"].values))
    away = [_away(m, known["rotation"][i], cell) for i, m in zip(frame, crystals["matrix"].values, strict=True)]
    near = int((np.array(away) < NEAR_DEGREES).sum())
    checks = [
        Check("hits", f"{len(found)}", f"{len(hits)} of {len(known['hit'])} frames", np.array_equal(hits, found)),
        Check(
            f"spots above {BRIGHT_PHOTONS:g} photons found as peaks", f"{seen:,}", f"{bright:,} - 2 %",
            seen >= 0.98 * bright,
        ),
        Check(
            f"crystals within {NEAR_DEGREES:g} degree", f"{near} of {len(away)}", f"{len(hits)}",
            near == len(away) == len(hits),
        ),
    ]  # fmt: skip
    if "merged" in result.tree.children:
        correlation = _correlation(result.tree["merged"].to_dataset(), known, truth, cell)
        words = f"{correlation:.3f}"
        checks.append(
            Check("merged intensities, correlation", words, f"{CORRELATION:g} or more", correlation >= CORRELATION)
        )
    return checks


def _peaks_of_spots(peaks: xr.Dataset, known: dict[str, Array]) -> tuple[int, int]:
    """Bright spots that were found, and how many there are: those that reach no edge of a panel and no hot pixel."""
    from scipy.spatial import cKDTree

    event = np.repeat(np.arange(len(known["hit"])), np.diff(known["spots.offset"]))
    segment, row, column = (known[f"spots.{name}"] for name in ("segment", "row", "column"))
    inside = np.minimum(row % 256, 255 - row % 256) > 4
    inside &= np.minimum(column % 256, 255 - column % 256) > 4
    bright = (known["spots.intensity"] >= BRIGHT_PHOTONS) & inside & known["written"][event, segment]
    # events and segments so far apart that nothing is near but in the same one
    spots = np.column_stack([1e4 * event, 1e4 * segment, row, column])
    hot = cKDTree(known["hot_pixels"] * (1e4, 1, 1))
    bright &= hot.query(spots[:, 1:])[0] > 6
    bright &= cKDTree(spots).query(spots, k=2)[0][:, 1] > 10
    rows = np.repeat(np.arange(peaks.sizes["row_edge"] - 1), np.diff(peaks["offset"].values))
    frame, where = np.divmod(rows, peaks.sizes["segment"])
    found = np.column_stack([1e4 * frame, 1e4 * where, peaks["ss"].values, peaks["fs"].values])
    if not len(found) or not bright.any():
        return 0, int(bright.sum())
    distance, _ = cKDTree(found).query(spots[bright])
    return int((distance < NEAR_PIXELS).sum()), int(bright.sum())


def _away(matrix: Array, rotation: Array, cell: Cell) -> float:
    """Degrees between an orientation and the true one, up to the lattice's rotations."""
    left, _, right = np.linalg.svd(np.diag(cell.parameters[:3]) @ matrix)
    most = max(np.trace(turn @ left @ right @ rotation) for turn in cell.rotations)
    return float(np.degrees(np.arccos(np.clip((most - 1) / 2, -1, 1))))


def _correlation(merged: xr.Dataset, known: dict[str, Array], truth: Path, cell: Cell) -> float:
    """Of merged intensities with the true ones, which fall with resolution by the B factor."""
    hkl = np.stack([merged[name].values for name in "hkl"], axis=1)
    unique = pack(to_asu(known["unique.hkl"], cell))
    order = np.argsort(unique)
    place = order[np.searchsorted(unique[order], pack(hkl)).clip(0, len(order) - 1)]
    same = unique[place] == pack(hkl)
    b_factor = json.loads((truth / "truth.json").read_text())["crystal"]["b_factor_A2"]
    square = ((hkl / np.array(cell.parameters[:3])) ** 2).sum(axis=1)
    true = known["unique.intensity"][place] * np.exp(-0.5 * b_factor * square)
    return float(np.corrcoef(true[same], merged["intensity"].values[same])[0, 1])
