"""Merging: the mean intensity of each unique reflection over all crystals that measured it."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.ragged import Ragged
from ..reduce.reduction import Reduction
from .cell import Cell, as_cell, gemmi

Array = np.ndarray[Any, np.dtype[Any]]

WEIGHTS = ("equal", "sigma")

#: Indices are packed into one number, which sorts as they do.
_REACH = 1 << 15

_WORDS = {
    "h": ("1", "index h"),
    "k": ("1", "index k"),
    "l": ("1", "index l"),
    "intensity": ("1", "mean intensity"),
    "sigma": ("1", "standard error of the mean"),
    "measurements": ("1", "measurements"),
    "half_intensity": ("1", "mean intensity of each half of the crystals, NaN where none measured it"),
    "half_measurements": ("1", "measurements of each half of the crystals"),
}


@dataclass(frozen=True)
class Sums:
    """Sums over measurements of each unique reflection, for two halves of the crystals.

    Attributes
    ----------
    key : (n,) int64
        Packed indices, rising.
    sums : (n, 2, 4) float64
        Of 1, the weight, weight times intensity, weight times its square; halves apart.
    counts : (4,) int64
        Crystals that were used, and left out; measurements that were used, and rejected.
    """

    key: Array
    sums: Array
    counts: Array

    @classmethod
    def of(cls, key: Array, half: Array, intensity: Array, weight: Array, counts: Array) -> "Sums":
        """Sums of measurements: (m,) each."""
        unique, place = np.unique(key, return_inverse=True)
        columns = (np.ones(len(key)), weight, weight * intensity, weight * intensity * intensity)
        bins = 2 * place + half
        sums = [np.bincount(bins, column, 2 * len(unique)).reshape(-1, 2) for column in columns]
        return cls(unique, np.stack(sums, axis=-1), counts)

    @classmethod
    def together(cls, parts: "Sequence[Sums]") -> "Sums":
        """Sums of all parts."""
        unique, place = np.unique(np.concatenate([part.key for part in parts]), return_inverse=True)
        sums = np.zeros((len(unique), 2, 4))
        first = 0
        for part in parts:
            # within a part each reflection is there once
            sums[place[first : first + len(part.key)]] += part.sums
            first += len(part.key)
        return cls(unique, sums, np.sum([part.counts for part in parts], axis=0))

    def mean(self) -> Array:
        """Mean intensity of each reflection, of both halves."""
        total = self.sums.sum(axis=1)
        return np.asarray(total[:, 2] / total[:, 1])


@dataclass(frozen=True)
class Rules:
    """How measurements are merged.

    Attributes
    ----------
    cell : Cell
    anomalous : bool
    by_sigma : bool
    reject : float
    d_min, d_max : float
    """

    cell: Cell
    anomalous: bool
    by_sigma: bool
    reject: float
    d_min: float
    d_max: float


def merge(
    reflections: Any,
    cell: Any = None,
    *,
    space_group: str | None = None,
    scale: int = 2,
    reject: float | None = None,
    anomalous: bool = False,
    weights: str = "equal",
    least: int = 1,
    d_min: float = 0.0,
    d_max: float = np.inf,
) -> xr.Dataset:
    """Merge the measurements of all crystals.

    Partialities average out over many crystals (Monte Carlo integration [1]_): the mean of what was measured is
    proportional to the whole intensity. It is made of sums, so that blocks can be anywhere and come in any order.
    Crystals are brought to one scale by the regression of each on the mean, `scale` times over.

    Parameters
    ----------
    reflections : Ragged or xarray.Dataset
        Rows are crystals: what `integrate` or `read_stream` gave, with `h`, `k`, `l`, `intensity` and `sigma`.
    cell : Cell, sequence of 6 float, str or Path
        By default what the reflections' attributes say.
    space_group : str, optional
        By default that of the cell. Its Laue group counts, and its absences.
    scale : int
        Rounds of scaling; 0 for none. A crystal that goes against the mean has no scale and is left out.
    reject : float, optional
        A measurement further than this from the mean of the others, in their standard deviations, is left out, where
        there are three others. Two wild ones of the same reflection hide each other.
    anomalous : bool
        Whether h, k, l and -h, -k, -l are two reflections.
    weights : {"equal", "sigma"}
        ``"sigma"`` weighs by ``1 / sigma**2``, as for measurements that are whole; those without a sigma are left out.
    least : int
        Reflections of fewer measurements are left out.
    d_min, d_max : float
        Limits of resolution [Angstrom].

    Returns
    -------
    xarray.Dataset
        Over `reflection`, sorted: `h`, `k`, `l` in the asymmetric unit of reciprocal space, `intensity`, `sigma` (of
        one measurement alone 0 with equal weights), `measurements`; `half_intensity`, `half_measurements` (half,
        reflection), crystals being in one half or the other by a checksum of what they measured.
        Attributes tell cell, space group and counts.

    Raises
    ------
    ArgumentError
        There is no cell, an argument is out of range, or there is nothing to merge.

    References
    ----------
    .. [1] R. A. Kirian et al., Opt. Express 18 (2010) 5713.

    Examples
    --------
    >>> reflections = xr.Dataset(
    ...     {
    ...         "offset": ("row_edge", [0, 2, 3]),
    ...         "h": ("reflection", [1, 2, -1]),
    ...         "k": ("reflection", [2, 1, 2]),
    ...         "l": ("reflection", [3, 3, 3]),
    ...         "intensity": ("reflection", [10.0, 12.0, 14.0]),
    ...         "sigma": ("reflection", [1.0, 1.0, 1.0]),
    ...     }
    ... )
    >>> merged = merge(reflections, (79.1, 79.1, 37.9, 90, 90, 90), space_group="P 43 21 2", scale=0)
    >>> merged["intensity"].values, merged["measurements"].values
    (array([12.]), array([3]))
    """
    known = _cell_of(reflections, cell, space_group)
    if weights not in WEIGHTS:
        raise ArgumentError(f"there are no weights {weights!r}; choose from {', '.join(WEIGHTS)}")
    if scale < 0 or least < 1 or (reject is not None and not reject > 0) or not 0 <= d_min < d_max:
        raise ArgumentError(
            f"scale={scale} and d_min={d_min} must not be negative, least={least} at least 1, reject={reject} and "
            f"d_max={d_max} above 0"
        )
    rules = Rules(known, anomalous, weights == "sigma", np.inf, d_min, d_max)
    basis: Sums | None = None
    sums = _reduce(reflections, rules)
    for _ in range(scale):
        basis, sums = sums, _reduce(reflections, rules, sums)
    if reject is not None:
        # by the same scales, so that a measurement can be taken from the sums that it is in
        sums = _reduce(reflections, replace(rules, reject=reject), basis, sums)
    if not len(sums.key):
        raise ArgumentError(
            "there is nothing to merge: no crystal has a measurement of finite intensity "
            f"between {d_min} and {d_max} Angstrom" + (" and a sigma" if weights == "sigma" else "")
        )
    return _merged(sums, rules, least, {"scale_rounds": scale, "weights": weights, "anomalous": int(anomalous)})


def _cell_of(reflections: Any, cell: Any, space_group: str | None) -> Cell:
    if not isinstance(reflections, Ragged | xr.Dataset):
        raise ArgumentError(f"reflections: a Ragged or a Dataset is wanted, not {type(reflections).__name__}")
    known = reflections.meta if isinstance(reflections, Ragged) else reflections
    lacking = [name for name in ("offset", "h", "k", "l", "intensity", "sigma") if name not in known]
    if lacking:
        raise ArgumentError(f"reflections: have no {lacking[0]}; give what integrate or read_stream gave")
    attrs = known.attrs
    if cell is None and "cell" not in attrs:
        raise ArgumentError("cell: the reflections have none; give it")
    if cell is None:
        return as_cell(attrs["cell"], space_group or attrs.get("space_group"))
    return as_cell(cell, space_group)


def _reduce(reflections: Any, rules: Rules, basis: Sums | None = None, others: Sums | None = None) -> Sums:
    reduction = Reduction(
        chunk=partial(_chunk, rules=rules, basis=basis, others=others),
        combine=Sums.together,
        finalise=_itself,
    )
    if isinstance(reflections, Ragged):
        made: Sums = reduction.lazily((block,) for block in reflections.blocks).compute()  # type: ignore[no-untyped-call]
        return made
    return reduction([(reflections,)])


def _itself(sums: Sums) -> Sums:
    return sums


def pack(hkl: Array) -> Array:
    """Indices (n, 3) as (n,) int64 that sort as they do."""
    shifted = hkl.astype(np.int64) + _REACH
    return np.asarray((shifted[:, 0] << 32) | (shifted[:, 1] << 16) | shifted[:, 2])


def unpack(key: Array) -> Array:
    """What `pack` packed: (n, 3) int32."""
    mask = (1 << 16) - 1
    return (np.stack([key >> 32, (key >> 16) & mask, key & mask], axis=1) - _REACH).astype(np.int32)


def to_asu(hkl: Array, cell: Cell, anomalous: bool = False) -> Array:
    """The equivalent of each reflection in the asymmetric unit of the Laue group.

    Parameters
    ----------
    hkl : (n, 3) int
    cell : Cell
    anomalous : bool
        Whether the mates of those that only an inversion brings there are given instead: -h, -k, -l.

    Returns
    -------
    (n, 3) int32

    Examples
    --------
    >>> to_asu(np.array([[-1, 2, 3]]), Cell((79, 79, 38, 90, 90, 90), "P 43 21 2")).tolist()
    [[2, 1, 3]]
    """
    group = cell.gemmi_group
    made = np.array(hkl, np.int32, order="C").reshape(-1, 3)
    group.switch_to_asu(made)
    if anomalous:
        plus = np.zeros(len(made), np.bool_)
        for operation in group.operations().derive_symmorphic().sym_ops:
            # indices are multiplied from the left
            plus |= (np.asarray(hkl) @ (np.array(operation.rot) // 24) == made).all(axis=1)
        made[~plus] *= -1
    return made


def _chunk(block: xr.Dataset, rules: Rules, basis: Sums | None, others: Sums | None) -> Sums:
    """Sums of a block of crystals, scaled to the mean of `basis`, and without outliers among `others`."""
    offset = block["offset"].values
    hkl = np.stack([block[name].values for name in "hkl"], axis=1)
    intensity, sigma = block["intensity"].values.astype(np.float64), block["sigma"].values.astype(np.float64)
    crystal = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
    if len(hkl) and np.abs(hkl).max() >= _REACH:
        raise ArgumentError(f"reflections: an index of {int(np.abs(hkl).max())} is no index")
    spans = [slice(first, last) for first, last in pairwise(offset)]
    half = np.array([zlib.crc32(hkl[own].tobytes() + intensity[own].tobytes()) & 1 for own in spans], np.int64)
    hkl = np.ascontiguousarray(hkl, np.int32)
    square = rules.cell.gemmi_cell.calculate_1_d2_array(hkl) if len(hkl) else np.empty(0)
    with np.errstate(divide="ignore"):
        d = 1 / np.sqrt(square)
    fine = np.isfinite(intensity) & (d >= rules.d_min) & (d <= rules.d_max) & np.isfinite(d)
    if rules.by_sigma:
        fine &= np.isfinite(sigma) & (sigma > 0)
    if len(hkl):
        fine &= ~rules.cell.gemmi_group.operations().systematic_absences(hkl)
    hkl, intensity, sigma, crystal = hkl[fine], intensity[fine], sigma[fine], crystal[fine]
    key = pack(to_asu(hkl, rules.cell, rules.anomalous)) if len(hkl) else np.empty(0, np.int64)
    present = np.bincount(crystal, minlength=len(offset) - 1) > 0
    used = present.copy()
    if basis is not None:
        factor = _scales(key, intensity, crystal, len(offset) - 1, basis)
        used &= factor > 0
        kept = used[crystal]
        key, intensity, sigma, crystal = key[kept], intensity[kept], sigma[kept], crystal[kept]
        intensity, sigma = intensity * factor[crystal], sigma * factor[crystal]
    weight = 1 / sigma**2 if rules.by_sigma else np.ones(len(key))
    rejected = 0
    if others is not None:
        keep = _agrees(key, intensity, weight, others, rules.reject)
        rejected = int((~keep).sum())
        key, intensity, weight, crystal = key[keep], intensity[keep], weight[keep], crystal[keep]
    counts = np.array([used.sum(), (present & ~used).sum(), len(key), rejected], np.int64)
    return Sums.of(key, half[crystal], intensity, weight, counts)


def _scales(key: Array, intensity: Array, crystal: Array, crystals: int, reference: Sums) -> Array:
    """What each crystal's intensities are multiplied by: the mean has no noise beside them, so they regress on it."""
    mean = reference.mean()[np.searchsorted(reference.key, key)] if len(reference.key) else np.empty(0)
    product = np.bincount(crystal, mean * intensity, crystals)
    own = np.bincount(crystal, mean * mean, crystals)
    return np.divide(own, product, out=np.zeros(crystals), where=product > 0)


def _agrees(key: Array, intensity: Array, weight: Array, reference: Sums, reject: float) -> Array:
    """Whether each measurement is near the mean of the others of its reflection."""
    place = np.minimum(np.searchsorted(reference.key, key), len(reference.key) - 1)
    total = reference.sums.sum(axis=1)[place]
    others = total - np.stack([np.ones(len(key)), weight, weight * intensity, weight * intensity**2], axis=1)
    enough = (reference.key[place] == key) & (others[:, 0] >= 2.5)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = others[:, 2] / others[:, 1]
        spread = np.sqrt(np.maximum(others[:, 3] / others[:, 1] - mean**2, 0) * others[:, 0] / (others[:, 0] - 1))
        away = np.abs(intensity - mean) > reject * spread
    return np.asarray(~(enough & (spread > 0) & away))


def _merged(sums: Sums, rules: Rules, least: int, told: dict[str, Any]) -> xr.Dataset:
    total = sums.sums.sum(axis=1)
    kept = total[:, 0] >= least
    total, parts = total[kept], sums.sums[kept]
    hkl = unpack(sums.key[kept])
    n, mean = total[:, 0], total[:, 2] / total[:, 1]
    if rules.by_sigma:
        sigma = 1 / np.sqrt(total[:, 1])
    else:
        spread = np.maximum(total[:, 3] / n - mean**2, 0.0)
        sigma = np.where(n > 1, np.sqrt(spread / np.maximum(n - 1, 1)), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        halves = (parts[:, :, 2] / parts[:, :, 1]).T
    columns: dict[str, tuple[Any, Array]] = {
        **{name: ("reflection", hkl[:, i]) for i, name in enumerate("hkl")},
        "intensity": ("reflection", mean),
        "sigma": ("reflection", sigma),
        "measurements": ("reflection", np.rint(n).astype(np.int64)),
        "half_intensity": (("half", "reflection"), halves),
        "half_measurements": (("half", "reflection"), np.rint(parts[:, :, 0].T).astype(np.int64)),
    }
    counted = ("crystals", "crystals_left_out", "measurements", "measurements_rejected")
    attrs = told | {
        "cell": list(rules.cell.parameters),
        "space_group": rules.cell.space_group,
        **dict(zip(counted, map(int, sums.counts), strict=True)),
    }
    return xr.Dataset(
        {
            name: (*column, dict(zip(("units", "long_name"), _WORDS[name], strict=True)))
            for name, column in columns.items()
        },
        attrs=attrs,
    )


def possible(cell: Cell, d_min: float, d_max: float = 0.0) -> Array:
    """Unique reflections that a crystal can have.

    Parameters
    ----------
    cell : Cell
    d_min, d_max : float
        [Angstrom]; `d_max` 0 for no limit.

    Returns
    -------
    (n, 3) int32
        Without absences.
    """
    made: Array = gemmi().make_miller_array(cell.gemmi_cell, cell.gemmi_group, d_min, d_max, True)
    return made
