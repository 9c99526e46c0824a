"""Geometry files of all kinds."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArgumentError, FormatError, RunNotFoundError, TargetExistsError
from . import crystfel
from .model import Geometry
from .psana import from_psana

Array = np.ndarray[Any, np.dtype[Any]]

#: Geometries have some hundred lines; whatever is larger is something else.
MOST_BYTES = 16 << 20


def read_geometry(
    path: str | Path,
    *,
    distance: float | None = None,
    photon_energy: float | None = None,
    shape: tuple[int, int, int] | None = None,
    data: str | Path | None = None,
    event: int = 0,
) -> Geometry:
    """Read where the pixels of a detector are.

    Parameters
    ----------
    path : str or Path
        CrystFEL's ``.geom``, or psana's ``geometry/0-end.data``.
    distance : float, optional
        Crystal to detector [m], instead of what the file says; panels keep their own offsets.
    photon_energy : float, optional
        [eV], likewise.
    shape : (int, int, int), optional
        Segments, rows and columns that CrystFEL's slab is made of, one below the other. By default those of Jungfrau,
        ePix10ka and CSPAD, where they fill it.
    data : str or Path, optional
        HDF5 or CXI file that a ``.geom`` names places in: for the distance, the photon energy and the mask.
    event : int
        Whose distance and photon energy.

    Returns
    -------
    Geometry

    Raises
    ------
    RunNotFoundError
        There is no such file.
    FormatError
        It is no geometry, or is damaged.
    ArgumentError
        The file does not tell the distance, or its panels do not fit the shape.

    Examples
    --------
    >>> _ = Path("a.geom").write_text('''
    ... clen = 0.1 ; m
    ... photon_energy = 9500 eV
    ... res = 10000
    ... p0/min_fs = 0
    ... p0/max_fs = 5
    ... p0/min_ss = 0
    ... p0/max_ss = 3
    ... p0/corner_x = -0.5
    ... p0/corner_y = -0.5
    ... p0/fs = +1.0x
    ... p0/ss = +1.0y
    ... ''')
    >>> geometry = read_geometry("a.geom")
    >>> geometry.shape, geometry.place(0, 3, 5)
    ((1, 4, 6), array([0.0005, 0.0003, 0.1   ]))
    """
    path = Path(path)
    text = _text(path)
    if distance is not None and not (np.isfinite(distance) and distance > 0):
        raise ArgumentError(f"distance={distance} m must be above zero")
    if path.suffix != ".geom" and not any("=" in line for line in text.splitlines() if not line.startswith("#")):
        return from_psana(text, str(path), distance, photon_energy)
    entries, where = crystfel.parse(text, str(path)), str(path)
    file = None if data is None else Path(data)
    layout = crystfel.layout_of(entries.panels, shape)
    groups = crystfel.groups_of(entries.groups, [block.name for block in entries.panels])
    panels = tuple(crystfel.panel_of(block, layout, groups[block.name]) for block in entries.panels)
    if photon_energy is None:
        photon_energy = crystfel.energy(entries.top, where)
        told = entries.top.get("photon_energy", "")
        if photon_energy is None and told.startswith("/") and file is not None:
            photon_energy = crystfel.from_data(file, told, event, "photon_energy")
    if distance is None:
        distance = _distance(entries, file, event, where)
    geometry = Geometry(panels, layout.shape, distance, photon_energy, slab=layout.slab)
    bad = crystfel.bad_regions(entries.bad, entries.panels, geometry)
    masked = _masked(entries, geometry, path, file)
    if masked is not None:
        bad = masked if bad is None else bad | masked
    return Geometry(panels, layout.shape, distance, photon_energy, bad, layout.slab)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FormatError(f"{path}: has {path.stat().st_size:,} bytes, which is no geometry file")
        return path.read_text()
    except FileNotFoundError:
        raise RunNotFoundError(f"{path}: there is no such geometry file") from None
    except IsADirectoryError:
        raise FormatError(f"{path}: is a directory, not a geometry file") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is no text, and so no geometry file") from None


def _distance(entries: crystfel.Entries, data: Path | None, event: int, where: str) -> float:
    told = {block.told["clen"] for block in entries.panels if "clen" in block.told} or {entries.top.get("clen", "")}
    if len(told) > 1:
        raise FormatError(f"{where}: its panels have several clen; one is wanted, and coffset for each panel")
    text = told.pop()
    if not text:
        raise ArgumentError(f"{where}: tells no distance (clen); give distance=, in metres")
    found = crystfel.length(text, where)
    if found is not None:
        return found
    # millimetres, where nothing else is said
    scale = 1.0 if text.split()[1:] == ["m"] else 1e-3
    return scale * crystfel.from_data(data, text, event, "distance")


def _masked(entries: crystfel.Entries, geometry: Geometry, path: Path, data: Path | None) -> Array | None:
    """Pixels that the mask calls bad; None where there is no mask, or it is in data that was not given."""
    told = entries.panels[0].told
    name = told.get("mask", told.get("mask0_data"))
    file = told.get("mask_file", told.get("mask0_file"))
    source = path.parent / file if file else data
    if name is None or source is None:
        return None
    good_bits, bad_bits = (
        told.get(f"mask_{kind}", told.get(f"mask0_{kind}bits")) for kind in ("good", "bad")
    )  # fmt: skip
    import h5py

    try:
        good = int(good_bits, 0) if good_bits else 0
        # where neither is told, whatever is not 0 is bad
        bad = int(bad_bits, 0) if bad_bits else (0 if good else 0xFFFFFFFF)
        with h5py.File(source) as opened:
            bits = np.asarray(opened[name])
    except (OSError, KeyError, ValueError) as error:
        raise FormatError(f"{source}: has no mask {name} that can be read: {error}") from None
    segments, rows, columns = geometry.shape
    if bits.size % (segments * rows * columns) or bits.dtype.kind not in "iub":
        raise FormatError(f"{source}: {name} is {bits.dtype} of shape {bits.shape}, not a mask of {geometry.shape}")
    bits = bits.astype(np.int64)
    if bits.size > segments * rows * columns:
        bits = bits.reshape(-1, bits.shape[-2], bits.shape[-1])[0]
    slab = bits.reshape(-1, bits.shape[-1]) if bits.shape != geometry.shape else None
    if slab is not None and slab.shape[1] >= columns:
        bits = np.stack([slab[row : row + rows, column : column + columns] for row, column in geometry.slab])
    made: Array = ((bits & good) != good) | ((bits & bad) != 0)
    return made.reshape(geometry.shape)


def write_geometry(geometry: Geometry, path: str | Path, *, adu_per_photon: float = 1.0) -> Path:
    """Write a geometry as CrystFEL's ``.geom``, of the slab that `write_cxi` writes.

    Parameters
    ----------
    geometry : Geometry
        Its bad pixels are not written: the mask of the data has them.
    path : str or Path
        What is there already stays.
    adu_per_photon : float

    Returns
    -------
    Path

    Raises
    ------
    TargetExistsError
        There is a file already.

    Examples
    --------
    >>> from lcls_dask.sfx import Panel
    >>> panel = Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    >>> geometry = Geometry((panel,), (1, 4, 6), 0.1, 9500.0)
    >>> read_geometry(write_geometry(geometry, "b.geom")).panels[0].name
    'p0'
    """
    target = Path(path)
    text = crystfel.crystfel_text(geometry, adu_per_photon=adu_per_photon)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(text)
        # a link, since a rename would replace what is there
        os.link(part, target)
    except FileExistsError:
        raise TargetExistsError(f"{target}: is there already; remove it, or choose another name") from None
    finally:
        part.unlink(missing_ok=True)
    return target
