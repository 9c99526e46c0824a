"""Indexing by other programs: DIALS and CrystFEL's indexamajig, run where they are installed.

Both are given the spots on one flat detector that there is not: scattering vectors say where on it they would be, so
that no geometry has to be translated. No pixel is read.
"""

import shlex
import shutil
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, FormatError, UnsupportedError
from .cell import Cell
from .crystals import crystals_dataset, spots_of, with_events
from .geometry.model import EV_ANGSTROM, Geometry
from .stream import cell_text, read_stream

Array = np.ndarray[Any, np.dtype[Any]]

#: The detector: distance and pixel [mm], pixels of a side.
DISTANCE, PIXEL, SIDE = 100.0, 0.05, 8000

#: Seconds that a program may take for a frame.
PATIENCE = 120.0


def index_block(
    peaks: xr.Dataset,
    method: str,
    cell: Cell,
    geometry: Geometry | None,
    photon_energy: Any,
    lattices: int,
    options: dict[str, Any],
) -> xr.Dataset:
    """Crystals of a block of peaks; see `index`.

    Parameters
    ----------
    peaks : xarray.Dataset
    method : {"dials", "indexamajig"}
    cell : Cell
    geometry : Geometry or None
    photon_energy : float, (event,) array or None
    lattices : int
    options : dict
        ``arguments``: a string of more arguments of the program; of DIALS, phil parameters.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    UnsupportedError
        The program is not installed.
    FormatError
        It failed; the error has its last words.
    """
    unknown = sorted(set(options) - {"arguments"})
    if unknown:
        raise ArgumentError(f"{unknown[0]}= is no option of method {method!r}; arguments= is")
    q, offset, wavelength = spots_of(peaks, geometry, photon_energy)
    fine = np.isfinite(q).all(axis=1)
    kept = np.concatenate([[0], np.cumsum(fine)])[offset]
    if ((wavelength <= 0) & (np.diff(kept) > 0)).any():
        raise ArgumentError("photon_energy: the spots of a frame lie on no Ewald sphere; give it, in eV")
    q, events = q[fine], len(kept) - 1
    run = {"dials": _dials, "indexamajig": _indexamajig}[method]
    event, matrix, explained = np.empty(0, np.int64), np.empty((0, 3, 3)), np.empty(0, np.int32)
    if len(q):
        with tempfile.TemporaryDirectory(prefix="lcls-dask-index-") as folder:
            event, matrix, explained = run(
                Path(folder),
                places(q, wavelength, kept),
                kept,
                wavelength,
                cell,
                lattices,
                options.get("arguments", ""),
            )
    count = np.bincount(event, minlength=events)
    columns = {"matrix": matrix, "shift": np.full((len(matrix), 2), np.nan), "explained": explained}
    made = crystals_dataset(count, columns, cell, {"method": method})
    return with_events(made, peaks, np.diff(kept).astype(np.int32), np.diff(kept) < np.diff(offset))


def places(q: Array, wavelength: Array, offset: Array) -> Array:
    """Column and row of spots on the detector that there is not.

    Parameters
    ----------
    q : (spots, 3) float64
    wavelength : (frames,) float64
    offset : (frames + 1,) int64

    Returns
    -------
    (spots, 2) float64
        Centres of pixels at whole numbers.
    """
    beam = q.copy()
    beam[:, 2] += 1 / np.repeat(np.where(wavelength > 0, wavelength, 1.0), np.diff(offset))
    with np.errstate(divide="ignore", invalid="ignore"):
        made: Array = beam[:, :2] / beam[:, 2:] * (DISTANCE / PIXEL) + (SIDE / 2 - 0.5)
    return made


def run_program(command: list[str], frames: int, folder: Path) -> None:
    """Run a program to its end.

    Parameters
    ----------
    command : list of str
    frames : int
        It may take `PATIENCE` for each.
    folder : Path
        Where it runs.

    Raises
    ------
    FormatError
        It failed, or took too long; the error has its last words.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=60 + PATIENCE * frames, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FormatError(f"{command[0]}: has taken more than {error.timeout:.0f} s for {frames} frames") from None
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise FormatError(f"{command[0]}: failed with exit status {done.returncode}: {last}")


def dials_python() -> str:
    """The Python that has DIALS.

    Returns
    -------
    str

    Raises
    ------
    UnsupportedError
        DIALS is not installed.
    """
    own = shutil.which("dials.python")
    if own:
        return own
    script = shutil.which("dials.index")
    if script:
        first = Path(script).read_text(errors="replace").partition("\n")[0]
        if first.startswith("#!") and "python" in first:
            return first[2:].strip().split()[-1]
    raise UnsupportedError("method 'dials' needs DIALS: apt-get install dials, or see dials.github.io")


def _dials(
    folder: Path, xy: Array, offset: Array, wavelength: Array, cell: Cell, lattices: int, arguments: str
) -> tuple[Array, Array, Array]:
    """Events, matrices and explained spots of crystals."""
    python = dials_python()
    np.savez(
        folder / "spots.npz",
        xy=xy, offset=offset, wavelength=wavelength, cell=np.array(cell.parameters), space_group=cell.space_group,
        lattices=lattices, arguments=arguments, detector=np.array([DISTANCE, PIXEL, SIDE]),
    )  # fmt: skip
    # by its path, since the Python that has DIALS does not have this package; -I keeps the user's own modules out
    script = Path(__file__).with_name("dials_frames.py")
    run_program([python, "-I", str(script), "spots.npz", "crystals.npz"], len(wavelength), folder)
    with np.load(folder / "crystals.npz") as found:
        return found["event"], found["matrix"], found["explained"]


def _indexamajig(
    folder: Path, xy: Array, offset: Array, wavelength: Array, cell: Cell, lattices: int, arguments: str
) -> tuple[Array, Array, Array]:
    """Events, matrices and explained spots of crystals."""
    program = shutil.which("indexamajig")
    if program is None:
        raise UnsupportedError("method 'indexamajig' needs CrystFEL, see www.desy.de/~twhite/crystfel")
    _write_spots(folder / "spots.cxi", xy, offset, wavelength)
    corner = -SIDE / 2
    (folder / "flat.geom").write_text(
        f"photon_energy = /LCLS/photon_energy_eV\nclen = {DISTANCE / 1000}\nres = {1000 / PIXEL}\n"
        "adu_per_photon = 1\ndata = /entry_1/data_1/data\npeak_list = /entry_1/result_1\n"
        f"dim0 = %\ndim1 = ss\ndim2 = fs\np0/min_fs = 0\np0/max_fs = {SIDE - 1}\np0/min_ss = 0\n"
        f"p0/max_ss = {SIDE - 1}\np0/corner_x = {corner}\np0/corner_y = {corner}\np0/fs = +1.0x\np0/ss = +1.0y\n"
    )
    (folder / "known.cell").write_text(cell_text(cell))
    (folder / "files.lst").write_text("spots.cxi\n")
    command = [
        program,
        "-i",
        "files.lst",
        "-g",
        "flat.geom",
        "-p",
        "known.cell",
        "-o",
        "out.stream",
        "--peaks=cxi",
        "-j",
        "1",
    ]
    command += ["--multi"] if lattices > 1 else ["--no-multi"]
    run_program(command + shlex.split(arguments), len(wavelength), folder)
    stream = read_stream(folder / "out.stream")
    number = np.array([int(name.rpartition("/")[2]) for name in stream.crystals["event_name"].values], np.int64)
    rows = stream.crystals["offset"].values
    event = np.repeat(number, np.diff(rows))
    order = np.argsort(event, kind="stable")
    return event[order], stream.crystals["matrix"].values[order], np.zeros(len(event), np.int32)


def _write_spots(path: Path, xy: Array, offset: Array, wavelength: Array) -> None:
    """Peaks as `--peaks=cxi` takes them, with pixels that are all 0 and take no place."""
    import h5py

    events, most = len(wavelength), int(np.diff(offset).max(initial=1))
    table = np.zeros((3, events, most), np.float32)
    for event, (first, last) in enumerate(pairwise(offset)):
        table[:2, event, : last - first] = xy[first:last].T
        table[2, event, : last - first] = 1000.0
    with h5py.File(path, "w") as file:
        file.create_dataset("entry_1/data_1/data", (events, SIDE, SIDE), np.uint8, chunks=(1, SIDE, SIDE), fillvalue=0)
        file["entry_1/result_1/nPeaks"] = np.diff(offset).astype(np.int32)
        for name, values in zip(("peakXPosRaw", "peakYPosRaw", "peakTotalIntensity"), table, strict=True):
            file[f"entry_1/result_1/{name}"] = values
        file["LCLS/photon_energy_eV"] = EV_ANGSTROM / np.where(wavelength > 0, wavelength, 1.0)
