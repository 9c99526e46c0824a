"""``lcls-dask ls``: the runs of an experiment."""

import json

import click

from .output import as_json, print_table


@click.command()
@click.argument("path", metavar="EXPERIMENT", default=".")
@as_json
def ls(path: str, json_: bool) -> None:
    """List the runs of EXPERIMENT, a directory of runs or lcls://<experiment>.

    \b
    Examples:
      lcls-dask ls data/xpptut15
      lcls-dask ls lcls://xpptut15 --json
    """
    from .. import open_experiment

    table = open_experiment(path).table()
    if json_:
        records = table.reset_index().to_json(orient="records", date_format="iso", date_unit="ns")
        click.echo(json.dumps(json.loads(records), indent=2))
        return
    flat = table.reset_index() if table.index.name else table
    print_table([str(name) for name in flat.columns], flat.astype(str).itertuples(index=False))
