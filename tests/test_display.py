"""A run's text and HTML: equal content, escaped, from the root node alone."""

import re
from collections.abc import Iterator, Mapping
from html import unescape
from types import MappingProxyType

import numpy as np
import pytest

from lcls_dask.display import COLUMNS, duration_text, run_html, run_text, segments_text, size_text, summarise
from lcls_dask.model import Detector, Node, RunIndex, Variable


class RootOnly(Mapping[str, Node]):
    """Nodes of which looking up any but the root fails, as a scan of payloads would be too much."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def __getitem__(self, path: str) -> Node:
        if path != "/":
            raise AssertionError(f"{path} was looked up: that may scan payloads")
        return self._root

    def __iter__(self) -> Iterator[str]:
        return iter(("/", "/hsd"))

    def __len__(self) -> int:
        return 2


def make_index(experiment: str = "xpptut15", kind: str = "jungfrau") -> RunIndex:
    def variable(name: str, shape: tuple[int, ...], dtype: str, coordinate: bool = False) -> Variable:
        dims = ("event", "d1", "d2", "d3")[: len(shape)]
        return Variable(name, dims, shape, np.dtype(dtype), 4, coordinate=coordinate)

    variables = [
        variable("timestamp", (100,), "uint64", coordinate=True),
        variable("jf.4m.raw.raw", (100, 8, 512, 1024), "uint16"),
        variable("jf.4m.raw.present", (100, 8), "bool"),
        variable("jf.4m.raw.damage", (100, 8), "uint16"),
        variable("hsd.raw.present", (100, 2), "bool"),
        variable("hsd.raw.damage", (100, 2), "uint16"),
    ]
    detectors = {
        "jf": Detector("jf", "opal", "", (0,), {"raw": "1.0.0"}),
        "jf.4m": Detector("jf.4m", kind, "s1", tuple(range(8)), {"raw": "0.2.0"}),
        "hsd": Detector("hsd", "hsd", "s2", (0, 3), {"raw": "3.0.0"}),
    }
    root = Node("/", MappingProxyType({v.name: v for v in variables}))
    return RunIndex(experiment, 14, "cut", "0a1b2c3d", RootOnly(root), detectors)


SPAN = (1000 << 32, (1010 << 32) | 500_000_000)


def test_facts() -> None:
    facts = dict(summarise(make_index(), SPAN, steps=3).facts)
    assert facts["state"].startswith("cut: ")
    assert facts["events"] == "100"
    assert facts["steps"] == "3"
    assert facts["start"] == "1990-01-01 00:16:40.000 UTC"
    assert facts["duration"] == "10.5 s"
    assert facts["rate"] == "9.4 events/s"


def test_a_run_without_events_has_no_times() -> None:
    assert not {"start", "duration", "rate"} & dict(summarise(make_index()).facts).keys()


def test_rows_belong_to_the_longest_detector_name_and_masks_are_left_out() -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in summarise(make_index()).rows]
    image = next(row for row in rows if row["detector"] == "jf.4m")
    assert (image["variable"], image["shape"], image["dtype"]) == ("raw.raw", "100 x 8 x 512 x 1024", "uint16")
    assert image["size"] == "800.0 MiB"
    assert image["segments"] == "0-7"
    assert image["algorithms"] == "raw 0.2.0"
    assert sum(row["variable"].endswith("present") for row in rows) == 1  # of hsd, which has nothing else here


def words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


def test_text_and_html_say_the_same() -> None:
    text = run_text(make_index(), SPAN, 3)
    html = unescape(re.sub(r"<[^>]*>", " ", run_html(make_index(), SPAN, 3)))
    assert words(text) == words(html)


def test_html_escapes_what_comes_from_files() -> None:
    html = run_html(make_index(experiment="<script>alert(1)</script>", kind="a&b<i>'\""))
    assert "<script>" not in html
    assert "<i>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 40, "3.0 TiB"), (1 << 60, "1024.0 PiB")],
)
def test_size_text(value: int, text: str) -> None:
    assert size_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (1.02e-7, "102.0 ns"), (59.9, "59.9 s"), (61, "1 min 01 s"), (3600, "1 h 00 min 00 s")],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_segments_text() -> None:
    assert segments_text(()) == ""
    assert segments_text((0, 2, 3, 4)) == "0, 2-4"
