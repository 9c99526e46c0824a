"""Pictures of crystallography: what `lcls_dask.sfx.chain.analyse` found."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..sfx.geometry.model import EV_ANGSTROM, Geometry
from . import figure

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

#: Places across a picture of the whole detector.
ACROSS = 620
#: Peaks that a picture shows at most: more would hide one another.
MOST_PEAKS = 20_000
#: Bins of time that hit rates are of at most, and frames that each has at least.
BINS, FRAMES = 100, 20
_RINGS = (20.0, 10.0, 5.0, 3.5, 2.5, 2.0, 1.5, 1.2)


def powder_with_peaks(result: "xr.DataTree", geometry: Geometry) -> "Figure":
    """The highest value of each pixel in all hits, and beside it the peaks of all hits, with rings of resolution.

    Parameters
    ----------
    result : xarray.DataTree
        What `analyse` gave.
    geometry : Geometry

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> powder_with_peaks(result, geometry).savefig("powder.png")  # doctest: +SKIP
    """
    made = figure(12, 5.6)
    left, right = made.subplots(1, 2, sharex=True, sharey=True)
    group = "hits" if int(result["powder/hits"].to_dataset()["frames"]) else "misses"
    powder = result[f"powder/{group}"].to_dataset()
    drawn = _detector(left, geometry.assemble(powder["max"].values), geometry)
    made.colorbar(drawn, ax=left, label=powder["max"].attrs["units"], shrink=0.75)
    left.set_title(f"Highest value of each pixel in {int(powder['frames']):,} {group}", fontsize="medium")
    fs, ss, segment = _peaks_of(result, result["frames"].to_dataset()["hit"].values)
    step = -(-len(fs) // MOST_PEAKS) or 1
    x, y, _ = 1e3 * np.moveaxis(geometry.place(segment[::step], ss[::step], fs[::step]), -1, 0)
    right.plot(x, y, ".", markersize=1.5, alpha=0.6)
    shown = "" if step == 1 else f", one of {step} shown"
    right.set_title(f"{len(fs):,} peaks of the hits{shown}", fontsize="medium")
    right.set(aspect="equal", xlabel="x (mm), to the left along the beam")
    for axes, colour in ((left, "white"), (right, "black")):
        _rings(axes, geometry, colour)
    return made


def hit_rate(result: "xr.DataTree") -> "Figure":
    """Shares of frames that were hits, and that were indexed, over time.

    Parameters
    ----------
    result : xarray.DataTree

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> hit_rate(result).savefig("hits.png")  # doctest: +SKIP
    """
    frames = result["frames"].to_dataset()
    stamps = frames["timestamp"].values.astype(np.uint64)
    seconds = (stamps >> np.uint64(32)).astype(np.float64) + 1e-9 * (stamps & np.uint64(0xFFFFFFFF)).astype(np.float64)
    seconds -= seconds.min()
    bins = int(np.clip(len(seconds) // FRAMES, 1, BINS))
    edges = np.linspace(0, max(float(seconds.max()), 1e-9), bins + 1)
    count, _ = np.histogram(seconds, edges)
    made = figure()
    axes = made.add_subplot()
    for label, chosen in (("hits", frames["hit"].values), ("indexed", frames["crystals"].values > 0)):
        some, _ = np.histogram(seconds[chosen], edges)
        with np.errstate(invalid="ignore"):
            share = 100 * some / count
        told = f"{label}, {100 * chosen.mean():.1f} % in all"
        # areas, as the two are often the same
        axes.stairs(share, edges, label=told, fill=label == "hits", alpha=0.4 if label == "hits" else 1, linewidth=1.5)
    axes.set(
        xlabel="time since the first frame (s)", ylabel="frames (%)", ylim=(0, 102), title=f"{len(seconds):,} frames"
    )
    axes.legend(loc="lower right")
    return made


def resolution_shells(result: "xr.DataTree") -> "Figure":
    """Figures of merit by shells of resolution.

    Parameters
    ----------
    result : xarray.DataTree
        With `figures`.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> resolution_shells(result).savefig("shells.png")  # doctest: +SKIP
    """
    figures = result["figures"].to_dataset()
    made = figure(9, 6.5)
    shown = (
        (("cc_half", "CC1/2"), ("cc_star", "CC*")),
        (("r_split", "Rsplit"),),
        (("completeness", "completeness"),),
        (("multiplicity", "measurements of a reflection"), ("i_over_sigma", "I / sigma")),
    )
    with np.errstate(divide="ignore"):
        edges = np.append(1 / figures["d_max"].values ** 2, 1 / figures["d_min"].values[-1] ** 2)
    middle = 0.5 * (edges[1:] + edges[:-1])
    for axes, curves in zip(made.subplots(2, 2, sharex=True).flat, shown, strict=True):
        for name, label in curves:
            overall = float(figures[f"{name}_overall"])
            axes.plot(middle, figures[name].values, "o-", markersize=4, label=f"{label}, {overall:.3g} in all")
        axes.legend(fontsize="small")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(alpha=0.3)
        axes.set_xticks(middle, [f"{1 / np.sqrt(at):.2f}" for at in middle], rotation=60, fontsize="small")
    for axes in made.axes[2:]:
        axes.set_xlabel("resolution (Å)")
    cell = ", ".join(f"{value:g}" for value in figures.attrs["cell"])
    crystals = result["merged"].to_dataset().attrs["crystals"]
    made.suptitle(f"{crystals:,} crystals merged in {figures.attrs['space_group']}, cell {cell}")
    return made


def indexed_frame(result: "xr.DataTree", geometry: Geometry, event: int, photons: Array) -> "Figure":
    """A frame with its peaks and the reflections that were predicted and integrated; the whole, and a part of it.

    Parameters
    ----------
    result : xarray.DataTree
    geometry : Geometry
    event : int
        Of the run.
    photons : (segment, row, column)
        The frame.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> indexed_frame(result, geometry, 7, photons).savefig("frame.png")  # doctest: +SKIP
    """
    made = figure(12, 5.6)
    left, right = made.subplots(1, 2)
    chosen = result["frames"].to_dataset()["frame"].values == event
    peaks = _peaks_of(result, chosen)
    spots = reflections_of(result, event)
    seen = photons[np.isfinite(photons)]
    high = max(float(np.percentile(seen, 99.9)), 1.0) if seen.size else 1.0
    panel, middle = _busiest(geometry, spots if len(spots[0]) else peaks)
    assembled = geometry.assemble(photons)
    for axes, step in ((left, None), (right, 1)):
        drawn = _detector(axes, assembled, geometry, high, step)
        for (fs, ss, segment), marker, size, colour, label in (
            (peaks, "o", 130, "tab:orange", "peaks"),
            (spots, "s", 90, "tab:red", "integrated reflections"),
        ):
            x, y, _ = 1e3 * np.moveaxis(geometry.place(segment, ss, fs), -1, 0)
            axes.scatter(
                x, y, size if axes is right else size / 8, marker=marker, facecolors="none", edgecolors=colour,
                linewidths=1.0 if axes is right else 0.5, label=f"{len(fs):,} {label}",
            )  # fmt: skip
    made.colorbar(drawn, ax=right, label=result["powder/hits"]["max"].attrs["units"], shrink=0.75)
    left.set_title(f"Event {event}: {len(peaks[0])} peaks, {len(spots[0])} reflections", fontsize="medium")
    _rings(left, geometry, "white")
    half = 0.5e3 * panel
    right.set(xlim=(middle[0] + half, middle[0] - half), ylim=(middle[1] - half, middle[1] + half))
    right.set_title("a part of it", fontsize="medium")
    right.legend(loc="upper right", fontsize="small")
    return made


def reflections_of(result: "xr.DataTree", event: int) -> tuple[Array, Array, Array]:
    """Places of the integrated reflections of a frame.

    Parameters
    ----------
    result : xarray.DataTree
    event : int
        Of the run.

    Returns
    -------
    fs, ss : (n,) float32
    segment : (n,) int32

    Examples
    --------
    >>> fs, ss, segment = reflections_of(result, 7)  # doctest: +SKIP
    """
    crystals, reflections = result["crystals"].to_dataset(), result["reflections"].to_dataset()
    number = np.flatnonzero(crystals["frame"].values == event)
    edges = reflections["offset"].values[crystals["offset"].values]
    rows = slice(0, 0) if not len(number) else slice(int(edges[number[0]]), int(edges[number[0] + 1]))
    fs, ss, segment = (reflections[name].values[rows] for name in ("fs", "ss", "segment"))
    return fs, ss, segment


def _peaks_of(result: "xr.DataTree", chosen: Array) -> tuple[Array, Array, Array]:
    """fs, ss and segment of the peaks of some frames."""
    peaks = result["peaks"].to_dataset()
    row = np.repeat(np.arange(peaks.sizes["row_edge"] - 1), np.diff(peaks["offset"].values))
    event, segment = np.divmod(row, peaks.sizes["segment"])
    kept = chosen[event]
    return peaks["fs"].values[kept], peaks["ss"].values[kept], segment[kept]


def _detector(
    axes: "Axes", whole: Array, geometry: Geometry, high: float | None = None, step: int | None = None
) -> Any:
    """Draw assembled pixels, in mm; each place shows the highest of its pixels, so that spots stay."""
    size = float(np.linalg.norm(geometry.panels[0].fs))
    height, width = whole.shape
    step = max(1, round(max(whole.shape) / ACROSS)) if step is None else step
    rows, columns = -(-height // step) * step, -(-width // step) * step
    padded = np.full((rows, columns), -np.inf, np.float32)
    padded[:height, :width] = np.where(np.isfinite(whole), whole, -np.inf)
    shown = padded.reshape(rows // step, step, columns // step, step).max(axis=(1, 3))
    shown[~np.isfinite(shown)] = np.nan
    seen = shown[np.isfinite(shown)]
    if high is None:
        high = float(np.percentile(seen, 99.5)) if seen.size else 1.0
    left, top = 1e3 * size * (width / 2), 1e3 * size * (height / 2)
    right, bottom = left - 1e3 * size * columns, top - 1e3 * size * rows
    drawn = axes.imshow(
        shown,
        vmin=0.0,
        vmax=max(high, 1e-9),
        extent=(left, right, bottom, top),
        interpolation="nearest",
        cmap="viridis",
    )
    axes.set(xlabel="x (mm), to the left along the beam", ylabel="y (mm)")
    return drawn


def _rings(axes: "Axes", geometry: Geometry, colour: str) -> None:
    """Circles of equal resolution."""
    if geometry.photon_energy is None:
        return
    limits = axes.get_xlim(), axes.get_ylim()
    reach = min(abs(one) for pair in limits for one in pair)
    around = np.linspace(0, 2 * np.pi, 181)
    for d in _RINGS:
        sine = EV_ANGSTROM / geometry.photon_energy / (2 * d)
        radius = 1e3 * geometry.distance * np.tan(2 * np.arcsin(sine)) if sine < np.sin(np.pi / 4) else np.inf
        if 0.15 * reach < radius < 1.2 * reach:
            axes.plot(radius * np.cos(around), radius * np.sin(around), "--", color=colour, linewidth=0.6, alpha=0.7)
            # away from the gaps between modules, which are along the axes
            x, y = radius * np.cos(np.deg2rad(120)), radius * np.sin(np.deg2rad(120))
            label = axes.text(x, y, f"{d:g} Å", color=colour, fontsize="small", ha="center", va="center", clip_on=True)
            label.set_bbox(
                {"facecolor": "black" if colour == "white" else "white", "alpha": 0.6, "pad": 1, "linewidth": 0}
            )
    axes.set(xlim=limits[0], ylim=limits[1])


def _busiest(geometry: Geometry, spots: tuple[Array, Array, Array]) -> tuple[float, Array]:
    """Size [m] and middle [mm] of the panel with most spots."""
    fs, ss, segment = spots
    number = geometry.panel_of(segment, ss, fs)
    panel = geometry.panels[int(np.bincount(number[number >= 0], minlength=1).argmax())]
    centre = geometry.place(panel.segment, (panel.row0 + panel.row1 - 1) / 2, (panel.column0 + panel.column1 - 1) / 2)
    return min(panel.shape) * float(np.linalg.norm(panel.fs)), 1e3 * centre[:2]
