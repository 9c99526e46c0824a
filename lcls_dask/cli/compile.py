"""``lcls-dask compile``: compile the loops now."""

import click

from .output import as_json, print_json


@click.command("compile")
@as_json
def compile_loops(json_: bool) -> None:
    """Compile the loops of reading and reducing runs, and keep them.

    Else each is compiled when it is first used, which takes the first run of each kind a minute or so; and of many
    workers that begin together, each compiles them. They lie beside the package where that is writable, else in the
    user's cache, or in NUMBA_CACHE_DIR.

    \b
    Example:
      lcls-dask compile
    """
    from ..demo.rehearsal import rehearse

    seconds = rehearse()
    if json_:
        print_json(seconds)
    else:
        told = (f"{kind}: {took if isinstance(took, str) else f'{took:.0f} s'}" for kind, took in seconds.items())
        click.echo("; ".join(told))
