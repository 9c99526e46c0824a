"""From what a user types to an opened run."""

from pathlib import Path

from ..errors import UriError
from ..formats import RunSource, open_source
from ..formats.discover import open_uri
from ..formats.xtc2.files import is_xtc2
from ..uri import is_uri, parse_uri


def looks_like_run(text: str) -> bool:
    """Whether a URI or path is a run that no other xarray engine would claim."""
    if is_uri(text):
        return True
    path = Path(text).expanduser()
    try:
        return is_xtc2(path) or (path.is_dir() and any(is_xtc2(entry) for entry in path.iterdir()))
    except OSError:
        return False


def open_at(
    uri_or_path: str, run: int | None = None, snapshot: str | None = None, gateway: str | None = None
) -> RunSource:
    """Open a run by URI or path.

    Parameters
    ----------
    uri_or_path : str
        ``lcls://<experiment>/r<NNNN>[@<snapshot>]``, or a file or directory.
    run : int, optional
        Which run, where a path holds several.
    snapshot : str, optional
    gateway : str, optional
        Where a URI is read from; ``lcls.gateway`` by default.

    Raises
    ------
    UriError, RunNotFoundError, SeveralRunsError, SnapshotError, FormatError, AccessError, UnreachableError
    """
    if not is_uri(uri_or_path):
        if gateway is not None:
            raise UriError(f"{uri_or_path}: is a path, which no gateway serves; write lcls://<experiment>/r<NNNN>")
        return open_source(uri_or_path, run, snapshot)
    uri = parse_uri(uri_or_path)
    if uri.run is None or uri.key:
        raise UriError(f"{uri_or_path}: names no run; write lcls://{uri.experiment}/r<NNNN>")
    if run not in (None, uri.run):
        raise UriError(f"{uri_or_path}: names run {uri.run}, but run={run} was asked for")
    if snapshot and uri.snapshot and snapshot != uri.snapshot:
        raise UriError(f"{uri_or_path}: names one snapshot, but snapshot={snapshot!r} was asked for")
    return open_uri(uri, snapshot, gateway)
