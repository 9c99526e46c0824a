"""Index frames with DIALS: ``python dials_frames.py SPOTS.npz CRYSTALS.npz``, run by the Python that has DIALS.

That one does not have this package, so nothing of it is imported here. See `programs`, which writes the spots.
"""

import sys
from typing import Any

import numpy as np

_PHIL = """
indexing.method=real_space_grid_search
indexing.stills.indexer=sequences
indexing.known_symmetry.unit_cell={cell}
indexing.known_symmetry.space_group={space_group}
indexing.multiple_lattice_search.max_lattices={lattices}
indexing.refinement_protocol.n_macro_cycles=1
{arguments}
"""


def main(source: str, target: str) -> None:
    """Read spots, index each frame, write crystals.

    Parameters
    ----------
    source, target : str
    """
    from dials.algorithms.indexing import DialsIndexError
    from dials.command_line.index import phil_scope
    from libtbx.phil import parse

    spots = np.load(source)
    phil = _PHIL.format(
        cell=",".join(map(str, spots["cell"])),
        space_group=str(spots["space_group"]).replace(" ", "").partition(":")[0],
        lattices=int(spots["lattices"]),
        arguments="\n".join(str(spots["arguments"]).split()),
    )
    scope, unknown = phil_scope.fetch(parse(phil), track_unused_definitions=True)
    if unknown:
        raise SystemExit(f"DIALS has no parameter {unknown[0].path}")
    event, matrix, explained = [], [], []
    for frame, (first, last) in enumerate(zip(spots["offset"][:-1], spots["offset"][1:])):  # noqa: B905
        if last - first < 4:
            continue
        try:
            found = _index(
                spots["xy"][first:last], float(spots["wavelength"][frame]), spots["detector"], scope.extract()
            )
        except (DialsIndexError, RuntimeError):
            continue  # it finds no lattice, or does not refine to one
        for star, count in found:
            event.append(frame)
            matrix.append(star)
            explained.append(count)
    np.savez(
        target,
        event=np.array(event, np.int64),
        matrix=np.array(matrix, np.float64).reshape(-1, 3, 3),
        explained=np.array(explained, np.int32),
    )


def _index(xy: Any, wavelength: float, detector: Any, parameters: Any) -> list[tuple[Any, int]]:
    """a*, b*, c* as rows, and how many spots are explained, of each lattice of a frame."""
    from dials.algorithms.indexing.indexer import Indexer
    from dials.array_family import flex
    from dxtbx.imageset import ImageSet, ImageSetData, MemReader
    from dxtbx.model import BeamFactory
    from dxtbx.model.detector import DetectorFactory
    from dxtbx.model.experiment_list import Experiment, ExperimentList

    distance, pixel, side = map(float, detector)
    beam = BeamFactory.make_beam(sample_to_source=(0, 0, -1), wavelength=wavelength)
    panel = DetectorFactory.make_detector(
        "SENSOR_PAD",
        fast_axis=(1, 0, 0),
        slow_axis=(0, 1, 0),
        origin=(-side * pixel / 2, -side * pixel / 2, distance),
        pixel_size=(pixel, pixel),
        image_size=(int(side), int(side)),
        trusted_range=(-1, 1e6),
    )
    # spots are assigned to lattices by image set, so there must be one, though no image is read
    images = ImageSet(ImageSetData(MemReader([None]), None))
    images.set_beam(beam)
    images.set_detector(panel)
    n = len(xy)
    table = flex.reflection_table()
    table["xyzobs.px.value"] = flex.vec3_double([(float(x) + 0.5, float(y) + 0.5, 0.5) for x, y in xy])
    table["xyzobs.px.variance"] = flex.vec3_double([(0.25, 0.25, 0.25)] * n)
    table["id"], table["imageset_id"], table["panel"] = flex.int(n, -1), flex.int(n, 0), flex.size_t(n, 0)
    table["flags"] = flex.size_t(n, int(flex.reflection_table.flags.strong))
    table["intensity.sum.value"] = table["intensity.sum.variance"] = flex.double(n, 100.0)
    experiments = ExperimentList([Experiment(beam=beam, detector=panel, imageset=images)])
    indexer = Indexer.from_parameters(table, experiments, params=parameters)
    indexer.index()
    owner = np.array(indexer.refined_reflections["id"])
    return [
        (np.array(crystal.get_A()).reshape(3, 3).T, int((owner == number).sum()))
        for number, crystal in enumerate(indexer.refined_experiments.crystals())
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
