"""``lcls-dask validate``: read everything once and say what is wrong with it."""

from dataclasses import asdict

import click

from .output import as_json, print_json, print_table, run_argument


@click.command()
@run_argument
@as_json
@click.pass_context
def validate(ctx: click.Context, path: str, run: int | None, snapshot: str | None, json_: bool) -> None:
    """Read all of RUN and report gaps, duplicates, damage and truncated files.

    Exits with 0 where all of it can be read, with 1 where something cannot.

    \b
    Examples:
      lcls-dask validate data/xpptut15-r0014
      lcls-dask validate data/xpptut15-r0014 --json
    """
    from .. import open_run

    report = open_run(path, run=run, snapshot=snapshot).validate()
    if json_:
        print_json(
            {
                "ok": report.ok,
                "events": report.events,
                "findings": [asdict(finding) for finding in report.findings],
            }
        )
    else:
        if report.findings:
            print_table(
                ("kind", "where", "count", "unreadable", "message"),
                [(f.kind, f.where, f"{f.count:,}", "yes" if f.fatal else "", f.message) for f in report.findings],
            )
        verdict = "all of it can be read" if report.ok else "some of it cannot be read"
        click.echo(f"{report.events:,} events: {verdict}")
    ctx.exit(0 if report.ok else 1)
