"""Nothing that an HDF5 file names may lead out of its run's directory.

HDF5 follows four kinds of names into other files, and some of them relative to the working directory
of the process: external links, soft links through them, raw data in external files, and the sources of
virtual datasets. All links of a file are walked before any data of it is read, and the files that
are led to are walked in turn.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfinementError, FormatError
from .reading import open_file, reading

#: Links that a file may hold: a bound on the walk, far above any real file.
MOST_LINKS = 200_000


@dataclass(frozen=True)
class Confined:
    """What the walk of a file found.

    Attributes
    ----------
    path : Path
        The file itself, without symbolic links.
    files : tuple of Path
        It and all that it draws data from, inside the run's directory.
    datasets : dict of str to (int, int)
        Every path of every dataset, and the dataset's identity: two paths may lead to one dataset.
    """

    path: Path
    files: tuple[Path, ...]
    datasets: dict[str, tuple[int, int]]


def inside(target: Path, directory: Path, what: str) -> Path:
    """Resolve a path, links and ``..`` included, and refuse it where it lies outside a directory.

    Parameters
    ----------
    target, directory : Path
        The latter without symbolic links.
    what : str
        Begins the error's message.

    Returns
    -------
    Path
        Absolute, without symbolic links.

    Raises
    ------
    ConfinementError
        It leads out.

    Examples
    --------
    >>> inside(Path("/run/a/../b.h5"), Path("/run"), "link").name
    'b.h5'
    """
    resolved = Path(os.path.realpath(target))
    if not resolved.is_relative_to(directory):
        raise ConfinementError(f"{what} leads out of the run's directory {directory}; copy what it names into the run")
    return resolved


def confine(path: Path, directory: Path) -> Confined:
    """Walk a file and all that it leads to.

    Parameters
    ----------
    path : Path
        An HDF5 file.
    directory : Path
        The run's own directory, without symbolic links.

    Returns
    -------
    Confined

    Raises
    ------
    ConfinementError
        Something in it leads out of the directory.
    FormatError
        It is no HDF5 file, it is damaged, or what it names is not there.
    """
    first = inside(path, directory, str(path))
    waiting, seen = [first], {first}
    while waiting:
        current = waiting.pop()
        with reading(current):
            named = _names(current)
        for kind, name in named:
            target = _target(kind, name, current, directory)
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    with reading(first):
        return Confined(first, tuple(sorted(seen)), _datasets(first))


def _target(kind: str, name: str, file: Path, directory: Path) -> Path:
    what = f"{file}: {kind} to {name[:200]!r}"
    if "%" in name:
        raise ConfinementError(f"{what} is a pattern whose files cannot be checked; name each file")
    target = inside(file.parent / name, directory, what)
    # HDF5 would go on to look for it in the working directory, and then invent fill values
    if not target.is_file():
        raise FormatError(f"{what}: there is no such file; copy it back beside {file.name}")
    return target


def _walk(file: Any, follow: bool) -> Iterator[tuple[str, Any, int]]:
    """All links of a file as (path, parent group, kind of link), each object's own links once."""
    import h5py

    root = file["/"].id
    waiting, seen, links = [("", root)], {_identity(root)}, 0
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            links += 1
            if links > MOST_LINKS:
                raise FormatError(f"{file.filename}: more than {MOST_LINKS} links; this is no run")
            kind = group.links.get_info(name).type
            path = f"{prefix}/{name.decode('utf-8', 'surrogateescape')}"
            yield path, group, kind
            if kind != h5py.h5l.TYPE_HARD and not follow:
                continue
            try:
                thing = h5py.h5o.open(group, name)
            except (KeyError, RuntimeError):
                if kind == h5py.h5l.TYPE_HARD:
                    raise
                continue  # a link to nothing, or to itself, names no data
            if isinstance(thing, h5py.h5g.GroupID) and _identity(thing) not in seen:
                seen.add(_identity(thing))
                waiting.append((path, thing))


def _identity(thing: Any) -> tuple[int, int]:
    import h5py

    info = h5py.h5o.get_info(thing)
    return int(info.fileno), int(info.addr)


def _names(path: Path) -> list[tuple[str, str]]:
    """The other files that a file names, as (kind, name), found without following any of them."""
    import h5py

    named: list[tuple[str, str]] = []
    with open_file(path) as file:
        for text, group, kind in _walk(file, follow=False):
            name = text.rpartition("/")[2].encode("utf-8", "surrogateescape")
            if kind == h5py.h5l.TYPE_EXTERNAL:
                named.append(("external link", os.fsdecode(group.links.get_val(name)[0])))
            elif kind == h5py.h5l.TYPE_HARD:
                thing = h5py.h5o.open(group, name)
                if isinstance(thing, h5py.h5d.DatasetID):
                    named.extend(_sources(thing, path, text))
    return named


def _datasets(path: Path) -> dict[str, tuple[int, int]]:
    """Every name of every dataset, soft and external links followed (they have been checked by now)."""
    import h5py

    found = {}
    with open_file(path) as file:
        for text, group, _ in _walk(file, follow=True):
            try:
                name = text.rpartition("/")[2].encode("utf-8", "surrogateescape")
                thing = h5py.h5o.open(group, name)
            except (KeyError, RuntimeError):
                continue
            if isinstance(thing, h5py.h5d.DatasetID):
                found[text] = _identity(thing)
    return dict(sorted(found.items()))


def _sources(dataset: Any, path: Path, text: str) -> list[tuple[str, str]]:
    import h5py

    created = dataset.get_create_plist()
    if created.get_external_count():
        # HDF5 opens these relative to the working directory: there is no safe one
        raise ConfinementError(f"{path}: {text} keeps its data in an external file; repack it with h5repack")
    if created.get_layout() != h5py.h5d.VIRTUAL:
        return []
    names = {created.get_virtual_filename(k) for k in range(created.get_virtual_count())}
    return [("virtual source", name) for name in sorted(names) if name != "."]
