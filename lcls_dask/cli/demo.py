"""``lcls-dask demo``: two simulated runs, served, reduced and attacked, or any real one; laid out on a page."""

from pathlib import Path

import click

from ..demo.page import Section
from .output import print_table


@click.command()
@click.option("--run", "path", metavar="RUN", help="Report on this run instead of simulating two.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
@click.option("--events", type=click.IntRange(min=16), default=200_000, show_default=True, help="Of the ToF run.")
@click.option("--frames", type=click.IntRange(min=8), default=300, show_default=True, help="Of the Jungfrau run.")
@click.pass_context
def demo(ctx: click.Context, path: str | None, out: Path, events: int, frames: int) -> None:
    """Reduce runs on two local Dask workers and write PNGs and one HTML page into OUT.

    Without --run it simulates a time-of-flight run and a Jungfrau run (some 3 GB below OUT), reads them through a
    gateway as two users, kills a worker on the way, compares all results with the simulation's truth, and tries to
    get past the gateway. Exits with 1 where something differs or an attempt succeeds.

    \b
    Examples:
      lcls-dask demo
      lcls-dask demo --run data/xpptut15-r0014 --out report
    """
    if path is None:
        from ..demo.simulated import demonstrate

        sections = demonstrate(out, events, frames, say=_say)
    else:
        from ..demo.real import report

        sections = report(path, out, say=_say)
    for section in sections:
        _show(section)
    click.echo(f"\npage: {out / 'index.html'}")
    ctx.exit(1 if any(check.passed is False for section in sections for check in section.checks) else 0)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _show(section: Section) -> None:
    click.echo(f"\n{section.title}")
    if section.text:
        click.echo(section.text)
    if section.checks:
        print_table(section.columns, [check.cells for check in section.checks])
    for table in section.tables:
        print_table(table.columns, table.rows)
    for picture in section.pictures:
        click.echo(f"{picture.path}: {picture.caption}")
