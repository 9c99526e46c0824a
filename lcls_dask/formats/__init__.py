"""Run files: every format is a `RunSource` (`source.py`), and this is where paths become one."""

from .discover import find_runs, may_grow, open_source, reopen
from .source import RunSource, SourceRef

__all__ = ["RunSource", "SourceRef", "find_runs", "may_grow", "open_source", "reopen"]
