"""One self-contained HTML page: sections of tables and pictures, with no file or host needed besides."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #cf222e; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
figcaption { font-size: .9rem; opacity: .8; }
.note { background: var(--soft); border-left: 4px solid var(--line); padding: .6rem 1rem; }
"""


@dataclass(frozen=True)
class Check:
    """A figure beside what it should be.

    Attributes
    ----------
    name : str
    found, expected : str
        As they are shown.
    passed : bool or None
        None where it could not be checked; `expected` then says why.
    words : (str, str)
        What the last column shows where it has passed, and where not.
    """

    name: str
    found: str
    expected: str
    passed: bool | None
    words: tuple[str, str] = ("same", "DIFFERENT")

    @property
    def verdict(self) -> str:
        """What the last column shows."""
        return "not checked" if self.passed is None else self.words[not self.passed]

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The check as a row of a table."""
        return self.name, self.found, self.expected, self.verdict


@dataclass(frozen=True)
class Table:
    """A table under a section's text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page: a text, then checks under the names of their columns, tables and pictures."""

    title: str
    text: str = ""
    checks: tuple[Check, ...] = ()
    columns: tuple[str, str, str, str] = ("quantity", "found", "expected", "")
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def write_page(path: Path, title: str, note: str, sections: Sequence[Section]) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        File to write, replaced only when the whole page is there.
    title, note : str
        Heading, and what every reader must know before the first number.
    sections : sequence of Section

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_page(Path(folder) / "index.html", "A run", "Read this.", [Section("Facts", "None.")])
    ...     "Facts" in (Path(folder) / "index.html").read_text()
    True
    """
    body = "".join(map(_section, sections))
    html = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1><p class='note'>{escape(note)}</p>{body}</body></html>\n"
    )
    part = path.with_suffix(".part")
    part.write_text(html)
    part.replace(path)


def _section(section: Section) -> str:
    html = f"<h2>{escape(section.title)}</h2>"
    if section.text:
        html += f"<p>{escape(section.text)}</p>"
    if section.checks:
        html += _table(section.columns, [_cells(check.cells[:-1]) + _verdict(check) for check in section.checks])
    html += "".join(_table(table.columns, map(_cells, table.rows)) for table in section.tables)
    return html + "".join(map(_picture, section.pictures))


def _table(columns: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: Iterable[str]) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in row)


def _verdict(check: Check) -> str:
    mark = {True: " class='good'", False: " class='bad'", None: ""}[check.passed]
    return f"<td{mark}>{escape(check.verdict)}</td>"


def _picture(picture: Picture) -> str:
    data = b64encode(picture.path.read_bytes()).decode()
    caption = escape(picture.caption)
    return (
        f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>"
    )
