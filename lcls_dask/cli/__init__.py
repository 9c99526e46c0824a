"""The command line ``lcls-dask``: one thin file a command, and the one place where errors become a line."""

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

import click

from ..errors import LclsError
from .compile import compile_loops
from .demo import demo
from .doctor import doctor
from .export import export
from .identity import identity
from .info import info
from .issue import issue
from .ls import ls
from .serve import serve
from .sfx import sfx
from .simulate import simulate
from .tof import tof
from .token import token
from .validate import validate

DONE, FAILED, BAD_CALL, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("lcls_dask"), prog_name="lcls-dask")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def lcls_dask(debug: bool) -> None:
    """LCLS runs as lazy, labelled datasets.

    Exit codes: 0 done, 1 failed, 2 bad call. Most commands take --json for programs.
    """


for _command in (
    info,
    ls,
    validate,
    simulate,
    tof,
    sfx,
    export,
    doctor,
    compile_loops,
    demo,
    serve,
    identity,
    token,
    issue,
):
    lcls_dask.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        0 done, 1 failed, 2 bad call, 130 interrupted.

    Examples
    --------
    >>> main(["ls", "--no-such-option"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # not `lcls_dask.main`, which prints an empty line before it tells of an interrupt
        with lcls_dask.make_context("lcls-dask", list(arguments)) as context, warnings.catch_warnings():
            warnings.showwarning = _warn
            lcls_dask.invoke(context)
        return DONE
    except click.exceptions.Exit as wish:
        return wish.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return BAD_CALL
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "lcls-dask"
        return _say(BAD_CALL, f"{error.format_message()} Try '{command} --help'.")
    except (click.Abort, KeyboardInterrupt):
        return _say(INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # whoever read our output has gone: nothing to tell, and nowhere to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (click.ClickException, LclsError, OSError) as error:
        if "--debug" in arguments:
            raise
        return _say(FAILED, error.format_message() if isinstance(error, click.ClickException) else str(error))
    except Exception as error:
        if "--debug" in arguments:
            raise
        told = f"{type(error).__name__}: {error}"
        return _say(FAILED, f"internal error, please report it: {told}; lcls-dask --debug shows where")


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as people need it: one line, without the place in our code that gave it."""
    click.echo(f"lcls-dask: warning: {' '.join(str(message).split())}", err=True)


def _say(code: int, message: str) -> int:
    line = " ".join(message.split())
    click.echo(f"lcls-dask: {line}", err=True)
    return code
