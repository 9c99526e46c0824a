"""A bar for commands that work on Dask."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn


@contextmanager
def task_bar(quiet: bool) -> Iterator[None]:
    """A bar of Dask's tasks, on a terminal."""
    from dask.callbacks import Callback

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    bar = Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    task = bar.add_task("tasks", total=None)

    class Told(Callback):
        def _start_state(self, dsk: Any, state: Any) -> None:
            bar.update(task, total=sum(len(state[k]) for k in ("ready", "waiting", "running")), completed=0)

        def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
            bar.update(task, advance=1)

    with bar, Told():  # type: ignore[no-untyped-call]
        yield
