"""The OpenAPI 3.1 description of what is served, and served itself."""

from typing import Any

_EXPERIMENT = {
    "name": "experiment",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[a-z][a-z0-9_]{1,31}$"},
}
_RUN = {
    "name": "run",
    "in": "path",
    "required": True,
    "description": "its number, of up to six digits",
    "schema": {"type": "string", "pattern": "^[0-9]{1,6}$"},
}
_SNAPSHOT = {
    "name": "snapshot",
    "in": "path",
    "required": True,
    "description": "what the run's document calls its snapshot",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{8,64}$"},
}
_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "a zarr v3 key, such as timestamp/c/0, or a directory with a slash at its end; none is encoded",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]+$"},
}
_NODE = {**_KEY, "name": "node", "description": "a node's path without its first slash"}
_FIELDS = [
    {"name": "Range", "in": "header", "schema": {"type": "string", "pattern": "^bytes=[0-9]{0,18}-[0-9]{1,18}$"}},
    {"name": "If-None-Match", "in": "header", "schema": {"type": "string", "pattern": '^"[0-9a-f]{24}"$'}},
]


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_OPTIONAL_TEXT = {"type": ["string", "null"]}
_LIST = {"type": "array"}
_ERROR = _object(status={"type": "integer"}, error=_TEXT)

_REFUSALS = {
    "400": _json("malformed; the connection is closed", _ERROR),
    "401": _json("no token, or one that is expired, revoked, forged or of another certificate", _ERROR),
    "403": _json("a token that does not cover this", _ERROR),
    "404": _json("not there, or of an experiment that is not the user's", _ERROR),
    "405": _json("neither GET nor HEAD", _ERROR),
    "414": _json("the URL is too long", _ERROR),
    "429": _json("more than one user may take; see Retry-After", _ERROR),
    "431": _json("the header is too large", _ERROR),
    "503": _json("files, audit or memory are not there for the moment; see Retry-After", _ERROR),
}
_GONE = {
    "410": _json("the files are no longer what the snapshot names", _ERROR),
    "500": _json("the files are damaged", _ERROR),
}
_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {}}, "application/json": {"schema": {}}}
_VARIABLE = _object(
    name=_TEXT,
    dims=_LIST,
    shape=_LIST,
    dtype=_TEXT,
    chunk=_COUNT,
    nbytes=_COUNT,
    attrs={"type": "object"},
    coordinate={"type": "boolean"},
    codecs=_LIST,
)
_NODE_SCHEMA = _object(path=_TEXT, attrs={"type": "object"}, variables={"type": "array", "items": _VARIABLE})
_RUN_SCHEMA = _object(
    experiment=_TEXT,
    run=_COUNT,
    state={"enum": ["ended", "live", "cut"]},
    snapshot=_TEXT,
    events=_COUNT,
    steps=_COUNT,
    first_timestamp={"type": ["integer", "null"]},
    last_timestamp={"type": ["integer", "null"]},
    start=_OPTIONAL_TEXT,
    stop=_OPTIONAL_TEXT,
    attrs={"type": "object"},
    detectors=_LIST,
    nodes={"type": "array", "items": _TEXT},
    root=_NODE_SCHEMA,
)
_ROW = _object(
    run=_COUNT,
    state=_TEXT,
    snapshot=_OPTIONAL_TEXT,
    events=_COUNT,
    start=_OPTIONAL_TEXT,
    detectors=_LIST,
    steps=_COUNT,
    scanned=_LIST,
    problem=_TEXT,
)
_DIRECT_SCHEMA = _object(path=_TEXT, run={"type": ["integer", "null"]}, snapshot=_TEXT, used=_LIST, files=_LIST)


def _get(summary: str, answers: dict[str, Any], *parameters: dict[str, Any], secured: bool = True) -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {**_REFUSALS, **answers},
            "security": [{"capability": []}] if secured else [],
        }
    }


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "lcls_dask gateway",
        "version": "1",
        "description": "Runs of an X-ray laser as zarr v3 keys. Every connection needs a client certificate, every "
        "read a capability that is bound to it.",
    },
    "paths": {
        "/healthz": _get("Whether it runs", {"200": _json("it does", _object(status=_TEXT))}, secured=False),
        "/metrics": _get(
            "Counters for Prometheus, for managers",
            {"200": {"description": "its text format", "content": {"text/plain": {"schema": _TEXT}}}},
            secured=False,
        ),
        "/v1/openapi.json": _get("This description", {"200": _json("OpenAPI 3.1", {"type": "object"})}, secured=False),
        "/v1/runs": _get(
            "The user's experiments", {"200": _json("names", _object(experiments={"type": "array", "items": _TEXT}))}
        ),
        "/v1/runs/{experiment}": _get(
            "The run table",
            {"200": _json("a row a run", _object(experiment=_TEXT, runs={"type": "array", "items": _ROW}))},
            _EXPERIMENT,
        ),
        "/v1/runs/{experiment}/r{run}": _get(
            "A run as it is now", {"200": _json("its index", _RUN_SCHEMA), **_GONE}, _EXPERIMENT, _RUN
        ),
        "/v1/runs/{experiment}/r{run}@{snapshot}": _get(
            "A run of one snapshot", {"200": _json("its index", _RUN_SCHEMA), **_GONE}, _EXPERIMENT, _RUN, _SNAPSHOT
        ),
        "/v1/runs/{experiment}/r{run}@{snapshot}/nodes/{node}": _get(
            "A node", {"200": _json("its variables", _NODE_SCHEMA), **_GONE}, _EXPERIMENT, _RUN, _SNAPSHOT, _NODE
        ),
        "/v1/runs/{experiment}/r{run}@{snapshot}/zarr/{key}": _get(
            "Bytes of a zarr key",
            {
                "200": {"description": "all of them", "content": _BYTES},
                "206": {"description": "a range of them", "content": _BYTES},
                "304": {"description": "the client has them"},
                "416": _json("a range outside of them", _ERROR),
                **_GONE,
            },
            _EXPERIMENT,
            _RUN,
            _SNAPSHOT,
            _KEY,
            *_FIELDS,
        ),
        "/v1/runs/{experiment}/r{run}@{snapshot}/direct": _get(
            "The files themselves, for a reader on the same file system",
            {"200": _json("where they are and how they are recognised", _DIRECT_SCHEMA), **_GONE},
            _EXPERIMENT,
            _RUN,
            _SNAPSHOT,
        ),
    },
    "components": {
        "securitySchemes": {
            "capability": {"type": "http", "scheme": "bearer", "bearerFormat": "biscuit"},
        }
    },
}
