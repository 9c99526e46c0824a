"""``lcls-dask info``: what a run holds."""

from typing import TYPE_CHECKING, Any

import click

from .. import display
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
    return {
        **display.facts_of(run.index, run.span(), run.steps),
        "path": str(run.path),
        "variables": [display.facts_of_variable(variable) for variable in run.index.nodes["/"].variables.values()],
    }
