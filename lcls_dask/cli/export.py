"""``lcls-dask export``: a run, or part of it, as zarr or HDF5."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from ..errors import UnsupportedError, UriError
from .output import as_json, print_json, run_argument

COMPRESSIONS = ("auto", "blosc", "zstd", "gzip", "none")


class _Range(click.ParamType):  # type: ignore[type-arg]  # subscriptable only from click 8.4 on
    """Events as in Python, ``first:behind the last``."""

    name = "first:stop"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> slice:
        """Parse it."""
        first, colon, stop = str(value).partition(":")
        try:
            if not colon:
                raise ValueError
            return slice(int(first) if first else None, int(stop) if stop else None)
        except ValueError:
            self.fail(f"{value!r} is no range of events; write 0:1000, :1000 or 1000:", param, ctx)


@click.command()
@run_argument
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--variables", "-v", multiple=True, metavar="GLOB", help="Only these, such as 'hsd.*'; may be repeated.")
@click.option("--events", type=_Range(), help="Only these events, such as 0:1000.")
@click.option("--compression", type=click.Choice(COMPRESSIONS), default="auto", show_default=True)
@as_json
@click.pass_context
def export(
    ctx: click.Context,
    path: str,
    run: int | None,
    snapshot: str | None,
    target: Path,
    variables: tuple[str, ...],
    events: slice | None,
    compression: str,
    json_: bool,
) -> None:
    """Copy RUN to TARGET, which ends in .zarr, .h5, .hdf5 or .nc.

    Nothing is under that name before all of it is there. After a kill, the same call goes on where it was.

    \b
    Examples:
      lcls-dask export data/xpptut15-r0014 r0014.zarr
      lcls-dask export data/xpptut15-r0014 r0014.h5 -v 'hsd.*' --events 0:1000
    """
    from .. import open_run
    from ..access.export import chain_for
    from ..access.export import export as write

    codec = None if compression == "none" else compression
    try:
        chain_for(target, codec)
    except (UriError, UnsupportedError) as error:
        raise click.UsageError(f"{error}.", ctx) from error
    opened = open_run(path, run=run, snapshot=snapshot)
    bar = Progress(
        "[progress.description]{task.description}",
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=json_ or not Console(stderr=True).is_terminal,
    )
    with bar:
        task = bar.add_task(f"{opened.experiment} run {opened.number}")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        written = write(
            opened,
            target,
            events=events,
            variables=list(variables) or None,
            compression=codec,
            progress=progress,
        )
    if json_:
        print_json({"target": str(written), "experiment": opened.experiment, "run": opened.number})
    else:
        click.echo(str(written))
