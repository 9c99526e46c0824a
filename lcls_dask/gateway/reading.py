"""From what may be read to a response: all that waits for a disk, and runs in threads for it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LclsError
from ..security import Authoriser, Peer
from . import catalogue, describe
from .metrics import CONTENT_TYPE, exposition
from .open_run import OpenRun
from .openapi import DOCUMENT
from .request import Request, parse_range
from .response import IMMUTABLE, NOT_FOUND, RETRY, Response, error_response, json_response
from .routes import Kind, Route
from .runs import Runs, status_of
from .state import State

_log = logging.getLogger(__name__)

_IMMUTABLE = {"Cache-Control": IMMUTABLE}


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be answered, and what the audit says of it.

    Attributes
    ----------
    response : Response
    allowed : bool
    reason : str
        Empty where there is nothing to say.
    """

    response: Response
    allowed: bool = True
    reason: str = ""


class Reader:
    """Reads what a request that was allowed asks for.

    Parameters
    ----------
    runs : Runs
    authoriser : Authoriser
        Says which experiments a catalogue may name.
    state : State
    """

    def __init__(self, runs: Runs, authoriser: Authoriser, state: State) -> None:
        self._runs, self._authoriser, self._state = runs, authoriser, state

    def light(self, route: Route) -> bool:
        """Whether the answer is small and of a run that is open. Does not wait."""
        if route.kind is not Kind.KEY or route.run is None or route.snapshot is None:
            return False
        run = self._runs.pinned(route.experiment, route.run, route.snapshot)
        return run is not None and run.light(route.key)

    def read(self, request: Request, route: Route, peer: Peer) -> Found:
        """Read it; never raises, save for what ends the process."""
        try:
            response = self._response(request, route, peer)
            return Found(response, reason="nothing there" if response is NOT_FOUND else "")
        except (LclsError, OSError) as error:
            status, reason = status_of(error)
            return Found(self._failed(status, error), False, reason)
        except Exception as error:
            _log.error("internal error", exc_info=error, extra={"fields": {"target": request.target}})
            return Found(self._failed(500, error), False, "internal error")

    def _response(self, request: Request, route: Route, peer: Peer) -> Response:
        if route.kind is Kind.KEY:
            return _key(request, route.key, self._run(route))
        match route.kind:
            case Kind.OPENAPI:
                return json_response(DOCUMENT)
            case Kind.METRICS:
                return Response(200, {"Content-Type": CONTENT_TYPE}, exposition())
            case Kind.RUNS:
                names = self._authoriser.experiments(peer, request.token)
                return json_response({"experiments": catalogue.experiments(self._runs, names)})
            case Kind.EXPERIMENT:
                rows = catalogue.table(self._runs, self._state, route.experiment)
                return json_response({"experiment": route.experiment, "runs": rows})
        run = self._run(route)
        match route.kind:
            case Kind.RUN:
                pinned = route.snapshot and run.source.index.state != "live"
                return json_response(describe.run_document(run.source), fields=_IMMUTABLE if pinned else {})
            case Kind.NODE:
                node = run.source.index.nodes.get(f"/{route.key}")
                return json_response(describe.node_document(node), fields=_IMMUTABLE) if node else NOT_FOUND
            case Kind.LISTING:
                entries = describe.listing_document(list(run.keys.list_dir(route.key)))
                return json_response(entries, fields=_IMMUTABLE) if entries else NOT_FOUND
            case _:  # of direct reads; files may go away: what is told of them is not kept
                return json_response(describe.direct_document(run.source))

    def _run(self, route: Route) -> OpenRun:
        assert route.run is not None
        return self._runs.open(route.experiment, route.run, route.snapshot)

    def _failed(self, status: int, error: Exception) -> Response:
        if status == 404:
            return NOT_FOUND
        known = isinstance(error, LclsError)
        said = describe.without_root(str(error), str(self._runs.root)) if known else "something went wrong; try again"
        fields: Mapping[str, str] = RETRY if status == 503 else {}
        return error_response(status, " ".join(said.split()), fields=fields)


def _key(request: Request, key: str, run: OpenRun) -> Response:
    """Bytes of a key, or of a range of it."""
    tag = run.etag(key)
    fields = {"ETag": tag, "Cache-Control": IMMUTABLE, "Accept-Ranges": "bytes"}
    known = request.fields.get("if-none-match")
    if known is not None and (known == "*" or tag in known) and key in run.keys:
        return Response(304, fields)
    fields["Content-Type"] = "application/json" if key.endswith("zarr.json") else "application/octet-stream"
    if request.method == "HEAD":  # which has no ranges (RFC 9110)
        size = run.size(key)
        return NOT_FOUND if size is None else Response(200, fields, more=size)
    # ranges of another representation are not wanted
    same = request.fields.get("if-range", tag) == tag
    span = parse_range(request.fields.get("range")) if same else None
    piece = run.read(key, span)
    if piece is None:
        return NOT_FOUND
    fields["Content-Digest"] = piece.digest
    more = piece.size - piece.data.nbytes
    if span is None:
        return Response(200, fields, piece.data, rest=piece.rest, more=more)
    if not piece.size:
        said = f"the range is outside of {piece.total} bytes"
        return error_response(416, said, fields={"Content-Range": f"bytes */{piece.total}", "ETag": tag})
    fields["Content-Range"] = f"bytes {piece.start}-{piece.start + piece.size - 1}/{piece.total}"
    return Response(206, fields, piece.data, rest=piece.rest, more=more)
