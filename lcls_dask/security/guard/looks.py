"""Functions by which distributed's own diagnostics look at a scheduler, told from all others.

`distributed.performance_report` has the scheduler run a function, `distributed.progress` has it feed one: operations
that change a cluster as well, and so are for its manager alone. For the owner they run these functions and no others.
"""

from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, Final

from distributed import performance_report
from distributed.diagnostics.progressbar import MultiProgressBar, ProgressBar
from distributed.protocol.pickle import loads


def _inside(function: Callable[..., Any]) -> Iterator[CodeType]:
    yield from (constant for constant in function.__code__.co_consts if isinstance(constant, CodeType))


#: By the operation that runs them: the code of each function, whatever it refers to.
_LOOKS: Final = {
    "run_function": frozenset(_inside(performance_report.__aenter__)),
    "feed": frozenset({*_inside(ProgressBar.listen), *_inside(MultiProgressBar.listen)}),
}
_PICKLED: Final = ("function", "setup", "teardown")


def only_looks(operation: str, arguments: Mapping[str, Any]) -> bool:
    """Whether all functions of a request are distributed's own.

    They have to be unpickled for that, which a scheduler does with all that its owner sends.

    Parameters
    ----------
    operation : str
    arguments : dict
        Of the request, as it was sent.

    Returns
    -------
    bool

    Examples
    --------
    >>> import os, pickle
    >>> only_looks("run_function", {"function": pickle.dumps(os.getpid)})
    False
    """
    known = _LOOKS.get(operation, frozenset())
    pickled = [arguments[name] for name in _PICKLED if arguments.get(name)]
    try:
        return bool(pickled) and all(loads(function).__code__ in known for function in pickled)
    except Exception:  # a pickle may raise anything, and what cannot be read is none of these
        return False
