"""Pictures of a run as matplotlib figures, with no window and no state shared between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]


def figure(width: float = 9, height: float = 4.5) -> "Figure":
    """An empty figure, drawn by Agg alone.

    Parameters
    ----------
    width, height : float
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UnsupportedError
        matplotlib is not installed.

    Examples
    --------
    >>> figure(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError("pictures need matplotlib: pip install 'lcls_dask[plot]'") from error
    made = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(made)
    return made


def lines(x: Array, curves: dict[str, Array], xlabel: str, ylabel: str, title: str) -> "Figure":
    """Curves over one axis; as steps where `x` has one more value than they, the edges of bins.

    Parameters
    ----------
    x : (n,) or (n + 1,) float
    curves : dict of str to (n,) array
        By label; a label that begins with ``_`` is not in the legend.
    xlabel, ylabel, title : str

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> len(lines(np.arange(4), {"a": np.arange(3)}, "t (ns)", "hits", "spectrum").axes)
    1
    """
    made = figure()
    axes = made.add_subplot()
    for label, y in curves.items():
        if len(x) == len(y) + 1:
            axes.stairs(y, x, label=label)
        else:
            # few points are marked, as a line between them would hide how few they are
            axes.plot(x, y, label=label, linewidth=1, marker="o" if len(y) <= 64 else None, markersize=4)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    shown = [label for label in curves if not label.startswith("_")]
    if len(shown) > 1:
        axes.legend(ncols=1 + len(shown) // 9, fontsize="small")
    return made


def image(values: Array, label: str, title: str, width: float = 9, low: float | None = None) -> "Figure":
    """A picture of a detector, its segments one above the other, colours between the 1st and 99.5th percentile.

    Parameters
    ----------
    values : (row, column) or (segment, row, column)
        NaN where there is no pixel.
    label, title : str
        Of the colours, and of the whole.
    width : float
        Inches.
    low : float, optional
        Value of the darkest colour, in place of the percentile.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> len(image(np.eye(8), "ADU", "one frame").axes)
    2
    """
    flat = values.reshape(-1, values.shape[-1])
    step = max(1, round(flat.shape[1] / (width * 70)))
    shown = binned(flat, step)
    made = figure(width, min(12.0, max(3.0, 0.85 * width * flat.shape[0] / flat.shape[1])))
    axes = made.add_subplot()
    seen = shown[np.isfinite(shown)]
    first, high = np.percentile(seen, (1, 99.5)) if seen.size else (0.0, 1.0)
    low = first if low is None else low
    drawn = axes.imshow(
        shown,
        vmin=low,
        vmax=max(high, low + 1e-9),
        extent=(0, flat.shape[1], flat.shape[0], 0),
        interpolation="nearest",
    )
    made.colorbar(drawn, ax=axes, label=label, shrink=0.8)
    axes.set(title=title, xlabel="column", ylabel="row")
    return made


def heatmap(
    values: Array,
    x: tuple[float, float],
    y: tuple[float, float],
    xlabel: str,
    ylabel: str,
    label: str,
    title: str,
    both_signs: bool = False,
) -> "Figure":
    """Values over two axes, the first row at the bottom.

    Parameters
    ----------
    values : (row, column)
    x, y : (float, float)
        Ends of the axes.
    xlabel, ylabel, label, title : str
        Of the axes, of the colours, of the whole.
    both_signs : bool
        Colours about zero. They reach to the 99.5th percentile of the values' size, since a map's diagonal would hide
        all else; to the largest one where nearly all are zero. Otherwise rows are counted, and so are their ticks.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> len(heatmap(np.eye(3), (0, 1), (0, 1), "x", "y", "hits", "map").axes)
    2
    """
    made = figure(6.5 if both_signs else 9, 5.5 if both_signs else 4.5)
    axes = made.add_subplot()
    shown = np.abs(values[np.isfinite(values)])
    most = (float(np.percentile(shown, 99.5)) or float(shown.max()) if shown.size else 0.0) or 1.0
    drawn = axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        extent=(*x, *y),
        interpolation="nearest",
        cmap="RdBu_r" if both_signs else "viridis",
        vmin=-most if both_signs else 0.0,
        vmax=most,
    )
    made.colorbar(drawn, ax=axes, label=label)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if not both_signs:
        from matplotlib.ticker import MaxNLocator

        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return made


def polar(angles: Array, values: dict[str, Array], fits: Sequence[tuple[float, ...]], title: str) -> "Figure":
    """Intensities at angles, and the curves ``A (1 + R cos 2 (angle - tilt))`` fitted to them.

    Parameters
    ----------
    angles : (n,)
        In degrees.
    values : dict of str to (n,) array
        By label.
    fits : sequence of (float, float, float)
        A, R and the tilt in degrees, of each.
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> len(polar(np.arange(0, 360, 90), {"a": np.ones(4)}, [(1.0, 0.5, 20.0)], "angles").axes)
    1
    """
    made = figure(6, 6)
    axes = made.add_subplot(projection="polar")
    around = np.linspace(0, 360, 361)
    for (label, one), (mean, ratio, tilt) in zip(values.items(), fits, strict=True):
        (points,) = axes.plot(np.deg2rad(angles), one, "o", label=label)
        axes.plot(
            np.deg2rad(around), mean * (1 + ratio * np.cos(np.deg2rad(2 * (around - tilt)))), color=points.get_color()
        )
    axes.set_title(title)
    made.legend(loc="outside lower center", ncols=min(3, len(values)), fontsize="small")
    return made


def binned(values: Array, step: int) -> Array:
    """Means of squares of pixels, of those that are there.

    Parameters
    ----------
    values : (row, column)
    step : int
        Side of a square; what is left over at the ends is dropped.

    Returns
    -------
    (row // step, column // step) float64
        NaN where a square has no pixel.

    Examples
    --------
    >>> binned(np.array([[1, 2, 9], [3, np.nan, 9]]), 2)
    array([[2.]])
    """
    rows, columns = values.shape[0] // step, values.shape[1] // step
    squares = values[: rows * step, : columns * step].reshape(rows, step, columns, step).astype(np.float64)
    there = np.isfinite(squares)
    count = there.sum(axis=(1, 3))
    total = np.where(there, squares, 0.0).sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
