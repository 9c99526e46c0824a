"""What detectors write: which bits of a pixel are its value and which tell its gain; which pixels share electronics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Detector:
    """A kind of detector.

    Attributes
    ----------
    name : str
    states : (int, int, int, int)
        The stage of gain that each value of the two uppermost bits tells; -1 for none.
    ranges : int
        Stages of gain that constants are told for.
    bank : (int, int)
        Rows and columns that share an amplifier's wandering, and so a common mode.
    shape : (int, int)
        Rows and columns of a segment.
    """

    name: str
    states: tuple[int, int, int, int]
    ranges: int
    bank: tuple[int, int]
    shape: tuple[int, int]


#: By psana's names.
DETECTORS: Mapping[str, Detector] = {
    one.name: one
    for one in (
        # bits 00, 01, 11: high, medium, low gain; 10 does not occur
        Detector("jungfrau", (0, 1, -1, 2), 3, (256, 64), (512, 1024)),
        # bit 14: switched to low gain; which two of seven ranges these are, the configuration of each pixel tells
        Detector("epix10ka", (0, 1, 0, 1), 7, (176, 48), (352, 384)),
        # one gain, all 16 bits are the value's
        Detector("cspad", (0, 0, 0, 0), 1, (185, 194), (185, 388)),
    )
}

#: ePix10ka's ranges, in the order of its constants: fixed high, medium, low, auto-ranging high and medium, and the low
#: ranges that these switch to.
FIXED_HIGH, FIXED_MEDIUM, FIXED_LOW, AUTO_HIGH, AUTO_MEDIUM, AUTO_HIGH_LOW, AUTO_MEDIUM_LOW = range(7)


def detector_named(name: str) -> Detector:
    """A kind of detector by its name.

    Parameters
    ----------
    name : str
        Such as ``"jungfrau"``.

    Returns
    -------
    Detector

    Raises
    ------
    ArgumentError
        There is none of that name.

    Examples
    --------
    >>> detector_named("jungfrau").bank
    (256, 64)
    """
    if name not in DETECTORS:
        raise ArgumentError(f"detector={name!r} is not known; choose from {', '.join(DETECTORS)}")
    return DETECTORS[name]


def epix10ka_ranges(configuration: Any) -> Array:
    """Which two of the seven ranges of gain each pixel of an ePix10ka uses.

    Parameters
    ----------
    configuration : (segments, rows, columns) int
        Control bits of each pixel, psana's ``det.raw._cbits_config_detector()``: 4 and 8 the gain, 16 ``trbit``.

    Returns
    -------
    (2, segments, rows, columns) int8
        Before and behind its switching; the same where it cannot switch.

    Examples
    --------
    >>> epix10ka_ranges([[[28, 12, 8, 16, 0]]])[:, 0, 0]
    array([[0, 1, 2, 3, 4],
           [0, 1, 2, 5, 6]], dtype=int8)
    """
    bits = np.asarray(configuration)
    fixed = np.select(
        [bits & 28 == 28, bits & 28 == 12, bits & 12 == 8], [FIXED_HIGH, FIXED_MEDIUM, FIXED_LOW], default=-1
    )
    high = bits & 28 == 16
    first = np.where(fixed >= 0, fixed, np.where(high, AUTO_HIGH, AUTO_MEDIUM))
    second = np.where(fixed >= 0, fixed, np.where(high, AUTO_HIGH_LOW, AUTO_MEDIUM_LOW))
    return np.stack([first, second]).astype(np.int8)
