"""Where the pixels of the simulated Jungfrau 4M are."""

from dataclasses import dataclass

import numpy as np

from .plan import Array

#: Pixel size [m]; rows and columns of a module; ASICs of 256 x 256 pixels with a gap between them [pixel].
PIXEL = 75e-6
ROWS, COLUMNS, ASIC, GAP = 512, 1024, 256, 2

#: Centre of each module [mm]: the design positions of the 4M, a pinwheel about a hole for the beam.
_CENTRES = np.array([
    (-56.8071, 44.0055), (-15.5575, 44.0055), (25.6921, 33.9217), (66.9417, 33.9217),
    (-66.9417, -33.9217), (-25.6921, -33.9217), (15.5575, -44.0055), (56.8071, -44.0055),
])  # fmt: skip
#: How far each one is turned from the design [mrad]: mounting is never perfect.
_TURNS = np.array([0.8, -1.1, 0.3, 1.6, -0.5, 1.2, -1.9, 0.6])


@dataclass(frozen=True)
class Panels:
    """The detector as 64 panels, one an ASIC.

    Attributes
    ----------
    name : tuple of str
        ``p<module>a<asic>``, as CrystFEL users call them.
    corner : (64, 2) float64
        x, y of the corner of the first pixel [pixel], in the laboratory with the beam at 0, 0 along z.
    slow, fast : (64, 2) float64
        Steps to the next row and column [pixel].
    first : (64, 2) int64
        First row and column in the slab of all modules, (8 * 512, 1024).
    """

    name: tuple[str, ...]
    corner: Array
    slow: Array
    fast: Array
    first: Array

    def table(self) -> Array:
        """What `diffraction.predict` needs: (64, 6) corner x, y, first row, first column, rows, columns."""
        size = np.full((len(self.name), 2), ASIC)
        return np.concatenate([self.corner, self.first, size], axis=1).astype(np.float64)

    def inverse(self) -> Array:
        """From laboratory x, y to row, column: (64, 2, 2)."""
        inverse: Array = np.linalg.inv(np.stack([self.slow, self.fast], axis=2))
        return inverse


def jungfrau_4m() -> Panels:
    """Build the layout."""
    name, corner, slow, fast, first = [], [], [], [], []
    for module, (centre, turn) in enumerate(zip(_CENTRES, _TURNS, strict=True)):
        cos, sin = np.cos(turn * 1e-3), np.sin(turn * 1e-3)
        along = np.array([[cos, -sin], [sin, cos]]) @ np.array([[-1.0, 0.0], [0.0, -1.0]])  # slow, fast as columns
        for asic in range(8):
            row, column = asic // 4, asic % 4
            # gaps between ASICs are two pixels wide; the module's centre is that of 514 x 1030 pixels
            from_centre = np.array([row * (ASIC + GAP) - ASIC - GAP / 2, column * (ASIC + GAP) - 2 * ASIC - 1.5 * GAP])
            name.append(f"p{module}a{asic}")
            corner.append(centre / (PIXEL * 1e3) + along @ from_centre)
            slow.append(along[:, 0])
            fast.append(along[:, 1])
            first.append((module * ROWS + row * ASIC, column * ASIC))
    return Panels(tuple(name), np.array(corner), np.array(slow), np.array(fast), np.array(first))


def pixel_positions(panels: Panels) -> Array:
    """x, y of all pixel centres in the laboratory [pixel]: (8, 512, 1024, 2)."""
    xy = np.empty((8 * ROWS, COLUMNS, 2))
    centre = np.arange(ASIC) + 0.5
    for corner, slow, fast, (row, column) in zip(panels.corner, panels.slow, panels.fast, panels.first, strict=True):
        xy[row : row + ASIC, column : column + ASIC] = (
            corner + centre[:, None, None] * slow + centre[None, :, None] * fast
        )
    return xy.reshape(8, ROWS, COLUMNS, 2)


def crystfel_geometry(panels: Panels, distance: float, photon_energy: float, adu_per_photon: float) -> str:
    """The layout as a CrystFEL ``.geom`` file, for the slab (8 * 512, 1024) of all modules.

    Parameters
    ----------
    panels : Panels
    distance : float
        Crystal to detector [m].
    photon_energy : float
        [eV].
    adu_per_photon : float
    """
    lines = [
        "; Jungfrau 4M of a simulated run",
        f"photon_energy = {photon_energy:.1f} eV",
        f"clen = {distance:.6f}",
        f"res = {1 / PIXEL:.4f}",
        f"adu_per_photon = {adu_per_photon:.2f}",
        "data = /entry_1/data_1/data",
        "dim0 = %",
        "dim1 = ss",
        "dim2 = fs",
        "",
        *(f"rigid_group_p{m} = {','.join(f'p{m}a{a}' for a in range(8))}" for m in range(8)),
        "rigid_group_collection_modules = " + ",".join(f"p{m}" for m in range(8)),
        "",
    ]
    for name, corner, slow, fast, (row, column) in zip(
        panels.name, panels.corner, panels.slow, panels.fast, panels.first.tolist(), strict=True
    ):
        lines += [
            f"{name}/min_fs = {column}",
            f"{name}/max_fs = {column + ASIC - 1}",
            f"{name}/min_ss = {row}",
            f"{name}/max_ss = {row + ASIC - 1}",
            f"{name}/corner_x = {corner[0]:.6f}",
            f"{name}/corner_y = {corner[1]:.6f}",
            f"{name}/fs = {fast[0]:+.9f}x {fast[1]:+.9f}y",
            f"{name}/ss = {slow[0]:+.9f}x {slow[1]:+.9f}y",
            "",
        ]
    return "\n".join(lines)
