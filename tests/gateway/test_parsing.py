"""What of a request is understood, and what is refused before anything touches the file system."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcls_dask.gateway.request import BadRequestError, Heads, parse_head, parse_range
from lcls_dask.gateway.routes import Kind, Route, route_of, target_of

HEAD = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n"


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (b"GET /healthz HTTP/1.0\r\nHost: g", 505, "not HTTP/1.1"),
        (b"GET /healthz HTTP/2.0\r\nHost: g", 505, "not HTTP/1.1"),
        (b"GET /healthz\r\nHost: g", 400, "malformed request line"),
        (b"get /healthz HTTP/1.1\r\nHost: g", 400, "malformed request line"),
        (b"GET  /healthz HTTP/1.1\r\nHost: g", 400, "malformed request line"),
        (b"GET http://other/healthz HTTP/1.1\r\nHost: g", 400, "malformed request line"),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: g", 400, "malformed request line"),
        (b"GET /healthz HTTP/1.1\nHost: g", 400, "malformed request line"),
        (b"GET /\0 HTTP/1.1\r\nHost: g", 400, "malformed request line"),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: g", 414, "URL too long"),
        (HEAD + b"\r\n".join(b"X-%d: 1" % i for i in range(100)), 431, "too many header fields"),
        (HEAD + b"X: a\r\n folded", 400, "malformed header field"),
        (HEAD + b"X : a", 400, "malformed header field"),
        (HEAD + b"X: a\nY: b", 400, "malformed header field"),
        (HEAD + b"X: a\rb", 400, "malformed header field"),
        (HEAD + b"X: a\0b", 400, "malformed header field"),
        (HEAD + b"no colon", 400, "malformed header field"),
        (HEAD + b": empty name", 400, "malformed header field"),
        (HEAD + b"Host: other", 400, "two host fields"),
        (HEAD + b"Content-Length: 0\r\nContent-Length: 5", 400, "two content-length fields"),
        (HEAD + b"Content-Length: 5", 400, "a request here has no body"),
        (HEAD + b"Content-Length: +0", 400, "a request here has no body"),
        (HEAD + b"Transfer-Encoding: chunked", 400, "a request here has no body"),
        (HEAD + b"Content-Length: 0\r\nTransfer-Encoding: chunked", 400, "a request here has no body"),
        (HEAD + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 400, "two transfer-encoding fields"),
        (HEAD + b"Authorization: Bearer a\r\nAuthorization: Bearer b", 400, "two authorization fields"),
        (b"GET /healthz HTTP/1.1\r\nAccept: */*", 400, "no host field"),
        (b"GET /healthz HTTP/1.1", 400, "no host field"),
        (b"", 400, "malformed request line"),
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(head: bytes, status: int, reason: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_head(head.removesuffix(b"\r\n"))
    assert (caught.value.status, caught.value.reason) == (status, reason)


@pytest.mark.parametrize("filling", [b" ", b"\t ", b"x ", b"x", b":", b"\xff"])
def test_a_head_is_parsed_in_a_time_that_grows_as_its_length(filling: bytes) -> None:
    """Heads are parsed between all other requests, before anybody is asked for a token."""

    def seconds(size: int) -> float:
        head = HEAD + b"X:" + filling * (size // len(filling)) + b"\0"
        begun = time.process_time()
        with pytest.raises(BadRequestError):
            parse_head(head)
        return time.process_time() - begun

    # one that is parsed in a time that grows as the square took 2 s for this
    assert min(seconds(15_000) for _ in range(5)) < 0.01


def test_fields_are_parsed_again_where_they_differ() -> None:
    heads = Heads()
    for token in ("one", "one", "two"):
        request = heads.parse(HEAD + b"Authorization: Bearer " + token.encode())
        assert request.token == token
    for _ in range(2):  # what was refused once is refused again, and nothing of it stays
        with pytest.raises(BadRequestError):
            heads.parse(HEAD + b"Content-Length: 5")
    with pytest.raises(BadRequestError):
        heads.parse(b"GET /healthz HTTP/1.1")
    assert heads.parse(HEAD + b"Authorization: Bearer two").token == "two"


def test_a_head_is_understood() -> None:
    request = parse_head(HEAD + b"Accept: a\r\nACCEPT:b \r\nEmpty:\r\nContent-Length: 0\r\nBiscuit: abc")
    assert (request.method, request.target, request.token) == ("GET", "/healthz", "abc")
    assert request.fields == {"host": "gateway", "accept": "a, b", "empty": "", "content-length": "0", "biscuit": "abc"}
    assert request.keep_alive
    assert not parse_head(HEAD + b"Connection: Close").keep_alive


def test_the_bearer_goes_before_the_biscuit() -> None:
    assert parse_head(HEAD + b"Authorization: bearer x\r\nBiscuit: y").token == "x"
    assert parse_head(HEAD + b"Authorization: Basic x\r\nBiscuit: y").token == "y"
    assert parse_head(HEAD + b"Authorization: Basic x").token is None


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    try:
        request = parse_head(data)
    except BadRequestError:
        return
    assert request.target.startswith("/")


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=0-", 10, (0, 10)),
        ("bytes=5-99999999999999999", 10, (5, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-99", 10, (0, 10)),
        ("bytes=10-", 10, "unsatisfiable"),
        ("bytes=-0", 10, "unsatisfiable"),
        ("bytes=0-", 0, "unsatisfiable"),
    ],
)
def test_ranges(text: str, total: int, expected: tuple[int, int] | str) -> None:
    wanted = parse_range(text)
    assert wanted is not None
    start, stop, _ = wanted.indices(total)
    assert ((start, stop) if start < stop else "unsatisfiable") == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "bytes=",
        "bytes=-",
        "bytes=5-2",
        "bytes=0-1,3-4",
        "items=0-1",
        "bytes=a-b",
        "bytes=0-" + "9" * 30,
        "bytes=\u0661-\u0662",
    ],
)
def test_ranges_that_are_none_are_ignored(text: str | None) -> None:
    assert parse_range(text) is None


S = "0a1b2c3d"
RUN = f"/v1/runs/tmox42619/r0014@{S}"


@pytest.mark.parametrize(
    "target",
    [
        "/", "/v1", "/v1/runs/", "/v1/runs//r0014", "/v1/runs/TMOX42619", "/v1/runs/tmox42619/", "/v1/runs/../etc",
        "/v1/runs/%2e%2e", "/v1/runs/tmox42619/r\u0661\u0664", "/v1/runs/tmox42619/r-1", "/v1/runs/tmox42619/r0014@..",
        "/v1/runs/tmox42619/r0014@0A1B2C3D/zarr/", f"{RUN}/", f"{RUN}/zarr", f"{RUN}/direct/", f"{RUN}/other",
        f"{RUN}/zarr/..", f"{RUN}/zarr/../zarr.json", f"{RUN}/zarr/a/../b", f"{RUN}/zarr/a//b", f"{RUN}/zarr//a",
        f"{RUN}/zarr/./a", f"{RUN}/zarr/%2e%2e/a", f"{RUN}/zarr/a%2Fb", f"{RUN}/zarr/a%5cb", f"{RUN}/zarr/a\\b",
        f"{RUN}/zarr/a%00", f"{RUN}/zarr/%ff", f"{RUN}/zarr/%c0%ae%c0%ae", f"{RUN}/zarr/a%0a", f"{RUN}/zarr/a%e2%80%ae",
        f"{RUN}/zarr/a?b", f"{RUN}/zarr/a#b", f"{RUN}/nodes/..", "/healthz?x", "/healthz/", "/v1/openapi.json/..",
        "/v1/runs/tmox42619/r1234567", "/v1/runs/" + "a" * 33, "/v1/runs/tmox42619/r0014@" + "a" * 65,
    ],
)  # fmt: skip
def test_targets_that_name_nothing(target: str) -> None:
    assert route_of(target) is None


@pytest.mark.parametrize(
    ("target", "route"),
    [
        ("/healthz", Route(Kind.HEALTH)),
        ("/v1/runs", Route(Kind.RUNS)),
        ("/v1/runs/tmox42619", Route(Kind.EXPERIMENT, "tmox42619")),
        ("/v1/runs/tmox42619/r0014", Route(Kind.RUN, "tmox42619", 14)),
        (RUN, Route(Kind.RUN, "tmox42619", 14, S)),
        (f"{RUN}/direct", Route(Kind.DIRECT, "tmox42619", 14, S)),
        (f"{RUN}/nodes/", Route(Kind.NODE, "tmox42619", 14, S, "")),
        (f"{RUN}/nodes/hsd", Route(Kind.NODE, "tmox42619", 14, S, "hsd")),
        (f"{RUN}/zarr/", Route(Kind.LISTING, "tmox42619", 14, S, "")),
        (f"{RUN}/zarr/hsd/", Route(Kind.LISTING, "tmox42619", 14, S, "hsd")),
        (f"{RUN}/zarr/zarr.json", Route(Kind.KEY, "tmox42619", 14, S, "zarr.json")),
        (f"{RUN}/zarr/p:v.x%20%C2%B5/c/0", Route(Kind.KEY, "tmox42619", 14, S, "p:v.x µ/c/0")),
    ],
)
def test_targets_and_what_they_name(target: str, route: Route) -> None:
    assert route_of(target) == route
    assert route_of(target_of(route)) == route


@given(st.from_regex(re.compile(r"[^/\x00-\x1f\\]{1,8}(/[^/\x00-\x1f\\]{1,8}){0,3}"), fullmatch=True))
def test_every_key_has_a_target(key: str) -> None:
    route = Route(Kind.KEY, "tmox42619", 14, S, key)
    nameable = key.isprintable() and not any(part in (".", "..") for part in key.split("/"))
    assert route_of(target_of(route)) == (route if nameable else None)


@pytest.mark.parametrize(
    ("key", "detector"),
    [
        ("zarr.json", None),
        ("hsd/zarr.json", None),
        ("hsd.raw.value/zarr.json", None),
        ("timestamp/c/0", None),
        ("time/c/0", None),
        ("step/c", None),
        ("steps/motor/c/0", None),
        ("hsd.raw.value/c/0/0/0", "hsd"),
        ("photon_wavelength/c/0", "photon_wavelength"),
        ("hsd/hsd.fex.width/c/0", "hsd"),
        ("hsd/timestamp/c/0", "hsd"),
        ("epics/HX2:DVD/c/0", "epics"),
        ("a/b/c.raw.x/c/0", "a"),
        ("hsd/c/c/0", "hsd"),
        ("anything.else", "anything.else"),
    ],
)
def test_whose_values_a_key_holds(key: str, detector: str | None) -> None:
    assert Route(Kind.KEY, "tmox42619", 14, S, key).detector == detector
