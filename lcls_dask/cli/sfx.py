"""``lcls-dask sfx``: crystallography."""

from pathlib import Path

import click

from ..errors import ArgumentError, TargetExistsError
from .output import as_json, print_json, print_table


@click.group()
def sfx() -> None:
    """Serial crystallography: constants of detectors."""


@sfx.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HDF5 file of the constants."
)
@click.option("--detector", help="The area detector, where there are several.")
@click.option("--kind", default="jungfrau", show_default=True, help="Which bits tell the gain: jungfrau or cspad.")
@click.option("--gain", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="File of gains [ADU/keV] to put along, which darks do not tell.")  # fmt: skip
@click.option("--events", type=click.IntRange(1), help="Of each run, the first so many.")
@as_json
def darks(
    runs: tuple[str, ...],
    out: Path,
    detector: str | None,
    kind: str,
    gain: Path | None,
    events: int | None,
    json_: bool,
) -> None:
    """Derive pedestals, noise and bad pixels from dark RUNs: of a Jungfrau, one in each stage of gain.

    \b
    Examples:
      lcls-dask sfx darks exp/r0010 exp/r0011 exp/r0012 --out constants.h5
      lcls-dask sfx darks run1 --out constants.h5 --gain gain.npy
    """
    from .. import open_run
    from ..sfx.constants.darks import derive_constants, write_constants
    from ..sfx.constants.files import read_array
    from ..sfx.runs import frames_of

    if out.exists():
        raise TargetExistsError(f"{out}: is there already; remove it, or choose another with --out")
    opened = [open_run(path) for path in runs]
    frames = [frames_of(run, detector) for run in opened]
    if any(array.sizes["event"] == 0 for array in frames):
        raise ArgumentError("a run has no events to derive constants from")
    if events is not None:
        frames = [array.isel(event=slice(0, events)) for array in frames]
    derived = derive_constants(frames, kind, segments=frames[0]["segment"].values)
    derived.attrs |= {
        "runs": ", ".join(f"{run.experiment} {run.number} @{run.snapshot}" for run in opened),
        "events": ", ".join(str(array.sizes["event"]) for array in frames),
    }
    write_constants(derived, out, None if gain is None else read_array(gain))
    rows = [
        {
            "range": number,
            "frames": int(derived["frames"][number].max()),
            "pedestal": round(float(derived["pedestals"][number].median()), 1),
            "rms": round(float(derived["rms"][number].median()), 2),
            "bad": int((derived["pixel_status"][number] > 0).sum()),
        }
        for number in range(derived.sizes["range"])
        if int(derived["frames"][number].max())
    ]
    if json_:
        print_json({"target": str(out), "ranges": rows})
        return
    columns = ["range", "frames", "pedestal", "rms", "bad"]
    print_table(columns, [[row[column] for column in columns] for row in rows], title=str(out))
