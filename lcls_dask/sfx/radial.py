"""Radial profiles of frames, by pyFAI."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import ArgumentError, UnsupportedError
from .frames import as_float32, as_frames, fits, mapped, whole_frames
from .geometry.model import EV_ANGSTROM, Geometry
from .masks import good_pixels

Array = np.ndarray[Any, np.dtype[Any]]

#: What a profile may be over: pyFAI's name, its unit, and words.
UNITS = {
    "q": ("q_A^-1", "1/Angstrom", "4 pi sin(theta) / wavelength"),
    "two_theta": ("2th_deg", "degree", "scattering angle"),
    "radius": ("r_mm", "mm", "distance from the beam"),
}


@dataclass(frozen=True)
class Profile:
    """A detector as pyFAI knows it, and what a profile shall be.

    Attributes
    ----------
    integrator : pyFAI.integrator.azimuthal.AzimuthalIntegrator
    bins : int
    unit : str
    span : (float, float)
    polarization : float or None
    solid_angle : bool
    """

    integrator: Any
    bins: int
    unit: str
    span: tuple[float, float]
    polarization: float | None
    solid_angle: bool

    @classmethod
    def of(
        cls, geometry: Geometry, good: Array | None, wavelength: float, bins: int, unit: str,
        polarization: float | None, solid_angle: bool,
    ) -> "Profile":  # fmt: skip
        """Tell pyFAI where every pixel's corners are; `wavelength` in Angstrom."""
        try:
            from pyFAI.detectors import Detector
            from pyFAI.integrator.azimuthal import AzimuthalIntegrator
        except ImportError:
            raise UnsupportedError("radial profiles are made by pyFAI: pip install 'lcls_dask[sfx]'") from None
        corners, there = _corners(geometry)
        used = there if good is None else there & good
        if geometry.bad is not None:
            used &= ~geometry.bad
        size = float(np.linalg.norm(geometry.panels[0].fs))
        detector = Detector(size, size, max_shape=corners.shape[:2])
        detector.IS_CONTIGUOUS = False
        detector.set_pixel_corners(corners)
        detector.mask = ~used.reshape(corners.shape[:2])
        integrator = AzimuthalIntegrator(
            dist=geometry.distance, poni1=0.0, poni2=0.0, detector=detector, wavelength=wavelength * 1e-10
        )
        place = integrator.center_array(unit=UNITS[unit][0])[used.reshape(corners.shape[:2])]
        # of all pixels, so that profiles of all frames have the same bins
        return cls(integrator, bins, unit, (float(place.min()), float(place.max())), polarization, solid_angle)

    def __call__(self, values: Array, coords: xr.Dataset) -> Array:
        """Profiles of a block of frames, as (event, 1, 1, bins) float64."""
        made = np.empty((len(values), 1, 1, self.bins))
        for event, frame in enumerate(as_float32(values, coords)):
            result = self.integrator.integrate1d(
                frame.reshape(-1, frame.shape[-1]), self.bins, unit=UNITS[self.unit][0], radial_range=self.span,
                dummy=np.nan, correctSolidAngle=self.solid_angle, polarization_factor=self.polarization,
                method=("no", "histogram", "cython"),
            )  # fmt: skip
            made[event, 0, 0] = np.where(result.count > 0, result.intensity, np.nan)
        return made

    @property
    def middles(self) -> Array:
        """Of the bins."""
        edges = np.linspace(*self.span, self.bins + 1)
        made: Array = (edges[:-1] + edges[1:]) / 2
        return made


def _corners(geometry: Geometry) -> tuple[Array, Array]:
    """z, y, x of the four corners of each pixel of a slab [m], z from `distance` on; which pixels there are."""
    segments, rows, columns = geometry.shape
    made = np.zeros((segments, rows, columns, 4, 3))
    there = np.zeros(geometry.shape, np.bool_)
    for panel in geometry.panels:
        where = (panel.segment, slice(panel.row0, panel.row1), slice(panel.column0, panel.column1))
        there[where] = True
        for number, (down, across) in enumerate(((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))):
            row = np.arange(panel.shape[0])[:, None, None] + down
            column = np.arange(panel.shape[1])[:, None] + across
            corner = np.array(panel.corner) + row * np.array(panel.ss) + column * np.array(panel.fs)
            made[where][:, :, number] = corner[..., ::-1]
    return made.reshape(segments * rows, columns, 4, 3).astype(np.float32), there


def azimuthal_integrate(
    frames: Any,
    geometry: Geometry,
    *,
    bins: int = 1000,
    unit: str = "q",
    photon_energy: float | None = None,
    mask: Any = None,
    polarization: float | None = None,
    solid_angle: bool = True,
) -> xr.DataArray:
    """Mean of each ring of frames.

    Parameters
    ----------
    frames : xarray.DataArray, numpy.ndarray or dask.array.Array
        (event, segment, row, column), as `find_peaks` takes them; NaN does not count.
    geometry : Geometry
    bins : int
    unit : {"q", "two_theta", "radius"}
        What profiles are over.
    photon_energy : float, optional
        [eV]; the geometry's by default.
    mask : (segment, row, column) array, optional
        True for pixels that count.
    polarization : float, optional
        Factor from -1 to 1 that is corrected for; LCLS's beam is polarised along x.
    solid_angle : bool
        Correct for the solid angle of pixels.

    Returns
    -------
    (event, q) xarray.DataArray
        float64, on Dask; the dimension is named like the unit. NaN where no pixel counts.

    Raises
    ------
    UnsupportedError
        pyFAI is not installed.
    ArgumentError
        An argument is out of range.

    References
    ----------
    .. [1] G. Ashiotis et al., J. Appl. Cryst. 48 (2015) 510, doi:10.1107/S1600576715004306.

    Examples
    --------
    >>> azimuthal_integrate(frames, geometry, bins=500)  # doctest: +SKIP
    """
    array = whole_frames(as_frames(frames))
    fits(array, geometry.shape, "the geometry")
    if unit not in UNITS:
        raise ArgumentError(f"there is no unit {unit!r}; choose from {', '.join(UNITS)}")
    if bins < 1 or (polarization is not None and not -1 <= polarization <= 1):
        raise ArgumentError(f"bins={bins} must be 1 or more, and polarization={polarization} from -1 to 1")
    energy = geometry.photon_energy if photon_energy is None else photon_energy
    if energy is None or not (np.isfinite(energy) and energy > 0):
        raise ArgumentError(f"photon_energy={energy} eV: a number above zero is wanted, which the geometry may have")
    profile = Profile.of(
        geometry, good_pixels(mask, geometry.shape), EV_ANGSTROM / energy, bins, unit, polarization, solid_angle
    )
    made = mapped(array, _profiles, delayed(profile), np.float64, (1, 1, bins))
    _, units, words = UNITS[unit]
    told = {"units": array.attrs.get("units", "1"), "long_name": "mean of each ring"}
    return (
        made.isel(segment=0, row=0)
        .rename(column=unit)
        .assign_coords({unit: (unit, profile.middles, {"units": units, "long_name": words})})
        .assign_attrs(told)
        .rename("profile")
    )


def _profiles(values: Array, coords: xr.Dataset, profile: Profile) -> Array:
    return profile(values, coords)
