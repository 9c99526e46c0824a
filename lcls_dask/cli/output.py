"""What all commands print with: a table for people, JSON for programs."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

F = TypeVar("F", bound=Callable[..., Any])


def as_json(function: F) -> F:
    """Give a command the option ``--json``, as argument `json_`."""
    return click.option("--json", "json_", is_flag=True, help="JSON on standard output, for programs.")(function)


def run_argument(function: F) -> F:
    """Give a command the argument RUN and the options ``--run`` and ``--snapshot``."""
    for decorate in (
        click.option("--snapshot", metavar="DIGEST", help="Open the run as it was at this snapshot."),
        click.option("--run", type=click.IntRange(min=0), help="Which run, where the files hold several."),
        click.argument("path", metavar="RUN"),
    ):
        function = decorate(function)
    return function


def print_json(value: Any) -> None:
    """Print a value as JSON; what JSON has no word for is written as text, and numbers that are none as null."""
    click.echo(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table that fits a terminal, or one line a row where the output is not one."""
    console = Console(highlight=False, soft_wrap=False)
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        # programs and files get whole cells: rich would cut them to 80 columns
        if title:
            click.echo(title)
        widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
        for row in [list(columns), *cells]:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        # Text, as a string from a file could hold rich's markup
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
