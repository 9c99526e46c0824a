"""``lcls-dask simulate``: write a run in the real format, with its truth beside it."""

from pathlib import Path

import click

from .output import as_json, print_json


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["tof", "sfx", "scan"]), default="tof", show_default=True)
@click.option("--events", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option(
    "--rate-hz",
    type=click.FloatRange(0.001, 70_000),
    help="Write as fast as a beam of this rate, as if it were being taken.",
)
@as_json
def simulate(path: Path, kind: str, events: int, seed: int, rate_hz: float | None, json_: bool) -> None:
    """Write a simulated run into the new directory PATH, with truth.json and truth.zarr.

    \b
    Examples:
      lcls-dask simulate run1 --kind tof --events 10000 --seed 1
      lcls-dask simulate run2 --kind sfx --events 20
    """
    from .. import open_run
    from .. import simulate as write

    write(path, kind=kind, events=events, seed=seed, rate_hz=rate_hz)
    run = open_run(path)
    if json_:
        print_json({"path": str(path), "experiment": run.experiment, "run": run.number, "events": run.events})
    else:
        click.echo(f"{path}: {run.experiment} run {run.number}, {run.events:,} events")
        click.echo(f"try: lcls-dask info {path}")
