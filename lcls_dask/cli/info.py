"""``lcls-dask info``: what a run holds."""

from typing import TYPE_CHECKING, Any

import click
import numpy as np

from .. import display
from ..model import time_of
from .output import as_json, print_json, print_table, run_argument

if TYPE_CHECKING:
    from ..access.run import Run


@click.command()
@run_argument
@as_json
def info(path: str, run: int | None, snapshot: str | None, json_: bool) -> None:
    """Say what RUN holds, without reading its event data.

    RUN is a file, a directory of streams, or lcls://<experiment>/r<NNNN>[@<snapshot>].

    \b
    Examples:
      lcls-dask info data/xpptut15-r0014
      lcls-dask info lcls://xpptut15/r0014 --json
    """
    from .. import open_run

    opened = open_run(path, run=run, snapshot=snapshot)
    if json_:
        print_json(describe(opened))
        return
    summary = display.summarise(opened.index, opened.span(), opened.steps)
    width = max(len(name) for name, _ in summary.facts)
    for name, value in summary.facts:
        click.echo(f"{name.ljust(width)}  {value}")
    click.echo()
    print_table(display.COLUMNS, summary.rows)
    click.echo(f"\ntry: {summary.hint}")


def describe(run: "Run") -> dict[str, Any]:
    """A run's index as JSON-able values."""
    span = run.span()
    first, last = span or (None, None)
    start, stop = time_of(np.array(span, np.uint64)).astype(str).tolist() if span else (None, None)
    return {
        "experiment": run.experiment,
        "run": run.number,
        "state": run.state,
        "snapshot": run.snapshot,
        "path": str(run.path),
        "events": run.events,
        "steps": run.steps,
        "first_timestamp": first,
        "last_timestamp": last,
        "start": start,
        "stop": stop,
        "detectors": [
            {
                "name": detector.name,
                "kind": detector.kind,
                "serial": detector.serial,
                "segments": list(detector.segments),
                "algorithms": dict(detector.algorithms),
            }
            for detector in run.detectors.values()
        ],
        "variables": [
            {
                "name": variable.name,
                "dims": list(variable.dims),
                "shape": list(variable.shape),
                "dtype": str(variable.dtype),
                "chunk": variable.chunk,
                "nbytes": variable.nbytes,
                "attrs": dict(variable.attrs),
            }
            for variable in run.index.nodes["/"].variables.values()
        ],
    }
