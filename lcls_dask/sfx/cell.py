"""The crystal's cell: what is known of it, its primitive lattice, and the rotations that leave that as it is."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, FormatError, RunNotFoundError, UnsupportedError

Array = np.ndarray[Any, np.dtype[Any]]

#: Space group of each kind of centring without any other symmetry; R in hexagonal axes.
_CENTRED = {"P": "P 1", "A": "A 1", "B": "B 1", "C": "C 1", "I": "I 1", "F": "F 1", "R": "R 3:H"}

#: How far the metric may be from what the space group asks for, relatively.
_METRIC_TOLERANCE = 0.01
#: The same for a rotation of the lattice: it must not be taken for one where it nearly is.
_SYMMETRIC = 0.002


def gemmi() -> Any:
    """Return the library of crystallographic symmetry; `UnsupportedError` where it is not installed."""
    try:
        import gemmi as module
    except ImportError:
        raise UnsupportedError("cells and symmetry need gemmi: pip install 'lcls_dask[sfx]'") from None
    return module


@dataclass(frozen=True)
class Cell:
    """A cell with its space group.

    Attributes
    ----------
    parameters : (float, float, float, float, float, float)
        a, b, c [Angstrom], alpha, beta, gamma [degree].
    space_group : str
        Hermann-Mauguin symbol; a centring alone, such as ``"C 1"``, where the group is not known.

    Raises
    ------
    ArgumentError
        The parameters make no lattice, there is no such group, or it does not allow them.

    Examples
    --------
    >>> cell = Cell((79.1, 79.1, 37.9, 90, 90, 90), "P 43 21 2")
    >>> cell.centring, round(cell.volume), len(cell.rotations)
    ('P', 237133, 8)
    """

    parameters: tuple[float, float, float, float, float, float]
    space_group: str = "P 1"

    def __post_init__(self) -> None:
        values = np.asarray(self.parameters, np.float64)
        if values.shape != (6,) or not np.isfinite(values).all() or (values[:3] <= 0).any():
            raise ArgumentError(f"cell {self.parameters}: a, b, c [Angstrom] > 0 and alpha, beta, gamma are wanted")
        cos = np.cos(np.deg2rad(values[3:]))
        square = 1 - (cos**2).sum() + 2 * cos.prod()
        if (values[3:] <= 0).any() or (values[3:] >= 180).any() or square <= 1e-6:
            raise ArgumentError(f"cell {self.parameters}: no lattice has these angles [degree]")
        if values[:3].max() < 2 or values[:3].max() > 2000:
            raise ArgumentError(f"cell {self.parameters}: lengths are in Angstrom, from 2 to 2000")
        object.__setattr__(self, "parameters", tuple(float(value) for value in values))
        group = gemmi().find_spacegroup_by_name(self.space_group, *self.parameters[3::2])
        if group is None:
            raise ArgumentError(f"there is no space group {self.space_group!r}; write it like 'P 43 21 2'")
        object.__setattr__(self, "space_group", group.xhm())
        if not self.gemmi_cell.is_compatible_with_spacegroup(group, _METRIC_TOLERANCE):
            raise ArgumentError(f"cell {self.parameters}: space group {group.xhm()} does not allow it")

    @property
    def gemmi_cell(self) -> Any:
        """As gemmi's UnitCell."""
        return gemmi().UnitCell(*self.parameters)

    @property
    def gemmi_group(self) -> Any:
        """As gemmi's SpaceGroup."""
        return gemmi().SpaceGroup(self.space_group)

    @property
    def centring(self) -> str:
        """One of P, A, B, C, I, F, R; R only of hexagonal axes."""
        letter: str = self.gemmi_group.centring_type()
        return "P" if self.gemmi_group.ext == "R" else letter

    @property
    def volume(self) -> float:
        """Volume of the cell as it is given [Angstrom^3]."""
        return float(abs(np.linalg.det(self.matrix)))

    @cached_property
    def matrix(self) -> Array:
        """a, b, c as rows (3, 3) float64 [Angstrom]: a along x, b in the plane of x and y."""
        return np.array(self.gemmi_cell.orth.mat.tolist()).T

    @cached_property
    def to_primitive(self) -> Array:
        """Whole numbers and fractions (3, 3) by which `matrix` is multiplied to be that of the reduced lattice."""
        vector = gemmi().GruberVector(self.gemmi_cell, self.centring, True)
        vector.niggli_reduce()
        change = np.array(vector.change_of_basis.rot, np.float64).T / 24
        return change if np.linalg.det(change) > 0 else -change

    @cached_property
    def primitive(self) -> Array:
        """Axes of the reduced primitive lattice as rows (3, 3) float64 [Angstrom], the shortest first."""
        made: Array = self.to_primitive @ self.matrix
        return made

    @cached_property
    def rotations(self) -> Array:
        """Rotations (n, 3, 3) that leave the lattice as it is, in the frame of `matrix`; the first is the identity."""
        axes = self.primitive
        metric = axes @ axes.T
        changes = np.array(list(product((-1, 0, 1), repeat=9)), np.float64).reshape(-1, 3, 3)
        changes = changes[np.rint(np.linalg.det(changes)) == 1]
        size = np.sqrt(np.outer(metric.diagonal(), metric.diagonal()))
        away = np.abs(np.einsum("nij,jk,nlk->nil", changes, metric, changes) - metric) / size
        changes = changes[(away < _SYMMETRIC).all(axis=(1, 2))]
        # rows of `axes` go to rows of `changes @ axes`: the nearest rotation that does it
        made = np.swapaxes(changes @ axes, 1, 2) @ np.linalg.inv(axes.T)
        left, _, right = np.linalg.svd(made)
        rotations: Array = left @ right
        order = np.argsort([np.arccos(np.clip((np.trace(one) - 1) / 2, -1, 1)) for one in rotations], kind="stable")
        return rotations[order]


def as_cell(cell: Any, space_group: str | None = None) -> Cell:
    """A cell, however it is given.

    Parameters
    ----------
    cell : Cell, sequence of 6 float, str or Path
        a, b, c [Angstrom], alpha, beta, gamma [degree]; or a file: CrystFEL's ``.cell``, a PDB or an MTZ file.
    space_group : str, optional
        Hermann-Mauguin symbol; what a file says by default, else ``"P 1"``.

    Returns
    -------
    Cell

    Raises
    ------
    ArgumentError
        It makes no lattice, or `space_group` has another centring than the file.

    Examples
    --------
    >>> as_cell((79.1, 79.1, 37.9, 90, 90, 90), "P 43 21 2").space_group
    'P 43 21 2'
    """
    if isinstance(cell, str | Path):
        found = read_cell(cell)
    elif isinstance(cell, Cell):
        found = cell
    else:
        try:
            a, b, c, alpha, beta, gamma = map(float, getattr(cell, "parameters", cell))
        except (TypeError, ValueError):
            raise ArgumentError(f"cell {cell!r}: six numbers are wanted, a b c alpha beta gamma, or a file") from None
        return Cell((a, b, c, alpha, beta, gamma), space_group or "P 1")
    if space_group is None:
        return found
    made = Cell(found.parameters, space_group)
    if made.centring != found.centring and found.space_group not in ("P 1",):
        raise ArgumentError(
            f"space_group {made.space_group} is {made.centring}-centred and the cell {found.centring}-centred "
            f"({found.space_group}): only one can be right"
        )
    return made


def read_cell(path: str | Path) -> Cell:
    """Read a cell.

    Parameters
    ----------
    path : str or Path
        CrystFEL's ``.cell`` file, a PDB or an MTZ file.

    Returns
    -------
    Cell
        Of a ``.cell`` file only the centring is known of the space group.

    Raises
    ------
    FormatError
        It is none of these.

    Examples
    --------
    >>> read_cell("lysozyme.cell")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise RunNotFoundError(f"{path}: there is no such file; a cell is six numbers, a .cell, a PDB or an MTZ file")
    if path.suffix.lower() in (".pdb", ".ent", ".mtz"):
        return _by_gemmi(path)
    return cell_of_text(path.read_text(errors="replace"), str(path))


def _by_gemmi(path: Path) -> Cell:
    try:
        if path.suffix.lower() == ".mtz":
            mtz = gemmi().read_mtz_file(str(path))
            return Cell(mtz.cell.parameters, mtz.spacegroup.xhm())
        structure = gemmi().read_pdb(str(path))
        return Cell(structure.cell.parameters, structure.spacegroup_hm or "P 1")
    except (RuntimeError, AttributeError, OSError) as error:
        raise FormatError(f"{path}: has no cell that gemmi can read: {error}") from None


def cell_of_text(text: str, where: str = "cell") -> Cell:
    """The cell of a CrystFEL cell file, or of that part of a stream.

    Parameters
    ----------
    text : str
    where : str
        What it is called in errors.

    Returns
    -------
    Cell

    Raises
    ------
    FormatError
        Something is missing or not a number.
    ArgumentError
        Its lattice type, centring and parameters contradict each other.

    Examples
    --------
    >>> text = "centering = I\\na = 7.91 nm\\nb = 79.1 A\\nc = 37.9 A\\nal = 90 deg\\nbe = 90 deg\\nga = 90 deg"
    >>> cell_of_text(text).parameters, cell_of_text(text).centring
    ((79.1, 79.1, 37.9, 90.0, 90.0, 90.0), 'I')
    """
    told = {}
    for line in text.splitlines():
        name, equals, value = line.partition(";")[0].partition("=")
        if equals:
            told[name.strip()] = value.split()
    parameters = []
    for name in ("a", "b", "c", "al", "be", "ga"):
        try:
            value, unit = told[name]
            parameters.append(float(value) * {"A": 1.0, "nm": 10.0, "deg": 1.0}[unit])
        except (KeyError, ValueError):
            raise FormatError(f"{where}: has no line '{name} = NUMBER {'A' if len(name) == 1 else 'deg'}'") from None
    centring = (told.get("centering") or ["P"])[0]
    kind = (told.get("lattice_type") or ["triclinic"])[0]
    unique = (told.get("unique_axis") or ["*"])[0]
    if centring == "H":
        centring = "R"
    if centring not in _CENTRED:
        raise FormatError(f"{where}: centering = {centring} is none of P A B C I F R H")
    allowed = {"triclinic": "P", "monoclinic": "PABCI", "orthorhombic": "PABCIF", "tetragonal": "PI", "cubic": "PIF",
               "hexagonal": "PR", "rhombohedral": "PR"}  # fmt: skip
    if kind not in allowed:
        raise FormatError(f"{where}: lattice_type = {kind} is none of {', '.join(allowed)}")
    if "lattice_type" in told and centring not in allowed[kind]:
        raise ArgumentError(f"{where}: a {kind} lattice is not {centring}-centred; only one can be right")
    if unique not in ("*", "?", "a", "b", "c"):
        raise FormatError(f"{where}: unique_axis = {unique} is none of a b c")
    group = "P 1" if kind == "rhombohedral" and parameters[3] != 90 else _CENTRED[centring]
    a, b, c, alpha, beta, gamma = parameters
    return Cell((a, b, c, alpha, beta, gamma), group)


def lattice_words(cell: Cell) -> tuple[str, str, str]:
    """Lattice type, centring and unique axis, in CrystFEL's words; of the lattice's own symmetry.

    Parameters
    ----------
    cell : Cell

    Returns
    -------
    (str, str, str)

    Examples
    --------
    >>> lattice_words(Cell((79.1, 79.1, 37.9, 90, 90, 90), "I 4"))
    ('tetragonal', 'I', 'c')
    """
    a, b, c, *angles = cell.parameters
    right = [abs(angle - 90) < 0.1 for angle in angles]
    even = [abs(x - y) < 0.002 * x for x, y in ((b, c), (c, a), (a, b))]
    centring = cell.centring
    if all(right):
        kind = {0: "orthorhombic", 1: "tetragonal"}.get(sum(even), "cubic")
        axis = "abc"[even.index(True)] if kind == "tetragonal" else "*"
        return (kind, centring, axis) if kind != "tetragonal" or centring in "PI" else ("orthorhombic", centring, "*")
    if right[:2] == [True, True] and abs(angles[2] - 120) < 0.1 and even[2]:
        return "hexagonal", "H" if centring == "R" else "P", "c"
    if all(even) and max(angles) - min(angles) < 0.1:
        return "rhombohedral", "R", "*"
    if sum(right) == 2:
        return "monoclinic", centring, "abc"[right.index(False)]
    return "triclinic", centring, "*"
