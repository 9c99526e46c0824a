"""Experiments and reflection tables of DIALS: ``python dials_tables.py read|write TABLES.npz NAME.expt NAME.refl``.

Run by the Python that has DIALS, which does not have this package, so nothing of it is imported here. See `dials`.
"""

import sys
from typing import Any

import numpy as np


def write(source: str, experiments_file: str, reflections_file: str) -> None:
    """Make the two files of arrays.

    Parameters
    ----------
    source, experiments_file, reflections_file : str
    """
    from cctbx import sgtbx
    from dials.array_family import flex
    from dxtbx.model import BeamFactory, Crystal
    from dxtbx.model.experiment_list import Experiment, ExperimentList

    told = dict(np.load(source))
    detectors, beams, experiments = {}, {}, ExperimentList()
    for number, identifier in enumerate(told["identifier"].tolist()):
        shift, wavelength = tuple(told["shift"][number].tolist()), float(told["wavelength"][number])
        # what is shared is written once
        if shift not in detectors:
            detectors[shift] = _detector(told, np.array([*shift, 0.0]))
        if wavelength not in beams:
            beams[wavelength] = BeamFactory.make_beam(sample_to_source=(0, 0, -1), wavelength=wavelength)
        axes = (tuple(axis) for axis in told["axes"][number].tolist())
        crystal = Crystal(*axes, space_group=sgtbx.space_group(str(told["hall"])))
        experiments.append(
            Experiment(beam=beams[wavelength], detector=detectors[shift], crystal=crystal, identifier=identifier)
        )
    experiments.as_file(experiments_file)

    table, n, flags = flex.reflection_table(), len(told["id"]), flex.reflection_table.flags
    table["id"], table["panel"] = flex.int(told["id"]), flex.size_t(told["panel"])
    table["miller_index"] = flex.miller_index(told["hkl"].tolist())
    for name in ("s1", "xyzcal.px", "xyzcal.mm"):
        table[name] = flex.vec3_double(np.ascontiguousarray(told[name]))
    table["xyzobs.px.value"] = table["xyzcal.px"]  # not measured, but dials.scale takes the frame's number from it
    for name in ("intensity.sum.value", "intensity.sum.variance", "background.mean", "d"):
        table[name] = flex.double(told[name])
    table["partiality"], table["entering"] = flex.double(n, 1.0), flex.bool(n, False)
    table["flags"] = flex.size_t(n, int(flags.predicted) | int(flags.integrated_sum))
    for number, identifier in enumerate(told["identifier"].tolist()):
        table.experiment_identifiers()[number] = identifier
    table.as_file(reflections_file)


def _detector(told: Any, shift: Any) -> Any:
    """Panels, somewhere [mm]."""
    from dxtbx.model import Detector

    made = Detector()
    for name, vectors, size in zip(told["panel_name"].tolist(), told["panels"], told["panel_size"].tolist()):  # noqa: B905
        fast, slow, origin = vectors
        steps = float(np.linalg.norm(fast)), float(np.linalg.norm(slow))
        panel = made.add_panel()
        panel.set_type("SENSOR_PAD")
        panel.set_name(name)
        panel.set_local_frame(
            tuple((fast / steps[0]).tolist()), tuple((slow / steps[1]).tolist()), tuple((origin + shift).tolist())
        )
        panel.set_pixel_size(steps)
        panel.set_image_size(tuple(size))
        panel.set_trusted_range((-1e6, 1e9))
    return made


def read(target: str, experiments_file: str, reflections_file: str) -> None:
    """Make arrays of the two files.

    Parameters
    ----------
    target, experiments_file, reflections_file : str
    """
    from dials.array_family import flex
    from dxtbx.model.experiment_list import ExperimentList

    experiments = ExperimentList.from_file(experiments_file, check_format=False)
    table = flex.reflection_table.from_file(reflections_file)
    if any(one.crystal is None for one in experiments):
        raise SystemExit("an experiment has no crystal; index it first")
    kind = "sum" if "intensity.sum.value" in table else "prf"
    missing = [name for name in ("id", "miller_index", "panel", "xyzcal.px", f"intensity.{kind}.value",
                                 f"intensity.{kind}.variance") if name not in table]  # fmt: skip
    if missing:
        raise SystemExit(f"the reflections have no column {missing[0]}; integrate them first")
    # an id is of the experiment that has its identifier, and not always of the one with that number
    places = {one.identifier: number for number, one in enumerate(experiments)}
    given = dict(table.experiment_identifiers())
    owner = np.array(table["id"], np.int64)
    if given:
        unknown = sorted(set(given.values()) - set(places))
        if unknown:
            raise SystemExit(f"the reflections are of an experiment {unknown[0]!r} that there is not")
        of = {number: places[identifier] for number, identifier in given.items()}
        owner = np.array([of.get(number, -1) for number in owner.tolist()], np.int64)
    flags = flex.reflection_table.flags
    done = table.get_flags(flags.integrated_sum if kind == "sum" else flags.integrated_prf)
    n = len(table)
    groups = {one.crystal.get_space_group().type().hall_symbol() for one in experiments}
    panels = max((len(one.detector) for one in experiments), default=0)
    if any(len(one.detector) != panels for one in experiments):
        raise SystemExit("the experiments have detectors of different numbers of panels; split them first")
    np.savez(
        target,
        matrix=np.array([np.array(one.crystal.get_A()).reshape(3, 3).T for one in experiments]).reshape(-1, 3, 3),
        wavelength=np.array([one.beam.get_wavelength() for one in experiments], np.float64),
        identifier=np.array([one.identifier for one in experiments], np.str_),
        hall=np.array(sorted(groups), np.str_),
        beam=np.array([one.beam.get_s0() for one in experiments]).reshape(-1, 3),
        origin=np.array([[p.get_origin() for p in one.detector] for one in experiments]).reshape(-1, panels, 3),
        id=owner,
        hkl=np.array(list(table["miller_index"]), np.int32).reshape(n, 3),
        panel=np.array(table["panel"], np.int64),
        place=np.array(table["xyzcal.px"], np.float64).reshape(n, 3)[:, :2],
        intensity=np.array(table[f"intensity.{kind}.value"], np.float64),
        variance=np.array(table[f"intensity.{kind}.variance"], np.float64),
        background=np.array(table["background.mean"], np.float64) if "background.mean" in table else np.full(n, np.nan),
        integrated=np.array(done, np.bool_),
        panels=np.int64(panels),
    )


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
