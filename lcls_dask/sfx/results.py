"""What the chain writes when all blocks are finished: merged intensities, a stream, lists, and all that was found."""

import importlib.metadata
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..access.run import Run
from ..errors import ArgumentError, TargetExistsError
from ..reduce.ragged import Ragged, empty_like, select_events
from .blocks import RAGGED, SUMS, Block, Found, writing
from .figures import figures_of_merit
from .files import whole_file, write_hkl, write_mtz
from .geometry.crystfel import crystfel_text
from .geometry.files import write_geometry
from .kept import load
from .merging import merge
from .patterns import Part, add_to, finished
from .recipe import Tools
from .stream import write_stream

#: What OUT gets, beside pictures: the last of them last, and when it is there all are.
SETTINGS, GEOMETRY, HITS, STREAM, MTZ, HKL, RESULT = (
    "settings.json", "geometry.geom", "hits.lst", "crystals.stream", "merged.mtz", "merged.hkl", "sfx.zarr",
)  # fmt: skip


def open_result(out: str | Path) -> xr.DataTree:
    """What `analyse` wrote, lazily.

    Parameters
    ----------
    out : str or Path

    Returns
    -------
    xarray.DataTree

    Examples
    --------
    >>> open_result("out")["crystals/cell"].mean("crystal")  # doctest: +SKIP
    """
    return xr.open_datatree(Path(out) / RESULT, engine="zarr", consolidated=False, chunks=None)


def finish(run: Run, out: Path, tools: Tools, blocks: Sequence[Block]) -> None:
    """Put the results of all blocks together, and write the files that are not there yet.

    Parameters
    ----------
    run : Run
    out : Path
    tools : Tools
    blocks : sequence of Block
        All of the run, finished.

    Raises
    ------
    ArgumentError
        No frame could be used.
    StorageError
        A file could not be written.
    """
    found = Found.together([Found(*(load(block.path, name) for name in ("frames", *RAGGED))) for block in blocks])
    reasons = found.frames.attrs["reasons"]
    if len(reasons) == found.frames.sizes["event"]:
        raise ArgumentError(f"{run.path}: no frame could be used; of the first: {next(iter(reasons.values()))}")
    hit = np.flatnonzero(found.frames["hit"].values)
    peaks = select_events(found.peaks, hit)
    crystals = found.crystals.assign_coords(_names(blocks, found.frames, tools))
    made = {"frames": found.frames, "peaks": found.peaks, "crystals": found.crystals, "reflections": found.reflections}
    made |= _powder(blocks, tools, found.peaks["segment"])
    told = _told(run, tools)
    if found.reflections.sizes["reflection"]:
        try:
            made["merged"], made["figures"] = _merged(blocks, tools)
        except ArgumentError as error:
            # such as of crystals that scaling leaves out; all else is of use without
            told["not_merged"] = str(error)
    geometry = tools.geometry
    files: dict[str, Any] = {
        GEOMETRY: lambda path: write_geometry(geometry, path),
        STREAM: lambda path: write_stream(
            path, crystals, found.reflections, peaks, geometry=geometry,
            geometry_text=crystfel_text(geometry, adu_per_photon=1.0),
        ),
    }  # fmt: skip
    if tools.settings.cxi:
        files[HITS] = lambda path: _write_list(
            path, [str(b.cxi.relative_to(out)) for b in blocks if found.frames["hit"].values[b.first : b.last].any()]
        )
    if "merged" in made:
        files |= {MTZ: partial(write_mtz, made["merged"]), HKL: partial(write_hkl, made["merged"])}
    for name, write in files.items():
        if not (out / name).exists():
            # another process, where the run was begun twice, writes the same
            with writing(out / name), suppress(TargetExistsError):
                write(out / name)
    _write_result(xr.DataTree.from_dict({"/": xr.Dataset(attrs=told), **made}), out / RESULT)


def _names(blocks: Sequence[Block], frames: xr.Dataset, tools: Tools) -> dict[str, Any]:
    """Where CrystFEL finds each hit: the file, and which frame of it."""
    file, event = [], []
    for block in blocks:
        hit = np.flatnonzero(frames["hit"].values[block.first : block.last])
        file += [f"hits/{block.cxi.name}" if tools.settings.cxi else block.location] * len(hit)
        event += [f"//{i}" for i in (range(len(hit)) if tools.settings.cxi else hit + block.first)]
    names = {"filename": np.array(file, np.str_), "event_name": np.array(event, np.str_)}
    return {name: ("event", values) for name, values in names.items()} | {
        "hit": ("event", np.ones(len(file), np.bool_))
    }


def _merged(blocks: Sequence[Block], tools: Tools) -> tuple[xr.Dataset, xr.Dataset]:
    settings = tools.settings
    read: Any = delayed(load, pure=False)
    reflections = Ragged.from_blocks(
        [read(block.path, "reflections") for block in blocks],
        [block.last - block.first for block in blocks],
        empty_like(load(blocks[0].path, "reflections")),
    )
    merged = merge(
        reflections, tools.cell, scale=settings.scale, reject=settings.reject, anomalous=settings.anomalous
    )  # fmt: skip
    return merged, figures_of_merit(merged, min(settings.shells, merged.sizes["reflection"]))


def _powder(blocks: Sequence[Block], tools: Tools, segments: xr.DataArray) -> dict[str, xr.Dataset]:
    """Of hits and misses; means and deviations as float32, which they are good to."""
    sums: Part | None = None
    for block in blocks:
        kept = load(block.path, "powder")
        part: Part = tuple(kept[name].values for name in SUMS)  # type: ignore[assignment]
        if sums is None:
            sums = part
        else:
            add_to(sums, part)
    assert sums is not None
    made = {}
    for i, name in enumerate(("hits", "misses")):
        one: Part = tuple(part[i : i + 1] for part in sums)  # type: ignore[assignment]
        pattern = finished(one, (name,), tools.units, segments).drop_vars("sum").isel(group=0).drop_vars("group")
        made[f"powder/{name}"] = pattern.assign(
            {which: pattern[which].astype(np.float32, keep_attrs=True) for which in ("mean", "std")}
        )
    return made


def _write_list(path: Path, names: Sequence[str]) -> None:
    with whole_file(path) as place:
        place.write_text("".join(f"{name}\n" for name in names))


def _write_result(tree: xr.DataTree, path: Path) -> None:
    """All groups, in a directory that gets its name when it is whole."""
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # no other process has the same
    try:
        with writing(path):
            tree.to_zarr(part, mode="w-", consolidated=False)
            if not path.exists():
                part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _told(run: Run, tools: Tools) -> dict[str, Any]:
    return {
        "experiment": run.experiment,
        "run": run.number,
        "snapshot": run.snapshot,
        "state": run.state,
        "d_min": tools.d_min,
        "units": tools.units,
        "versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("lcls_dask", "numpy", "numba", "xarray", "gemmi")
        ),
        **{f"settings.{key}": value for key, value in tools.described().items() if value is not None},
    }
