"""HDF5 files that point elsewhere, lie about what they hold, or are damaged."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lcls_dask.errors import ConfinementError, FormatError, LclsError
from lcls_dask.formats.hdf5 import open_hdf5
from lcls_dask.formats.source import SourceRef

SECRET = np.arange(5, dtype="u8") + 123_456


def write(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["timestamp"] = np.arange(5, dtype="u8") << np.uint64(32)
        file.create_dataset("gmd/energy", data=np.arange(5.0), chunks=(2,), compression="gzip")
        file["gmd/image"] = np.arange(5 * 12.0).reshape(5, 3, 4)
        file["gmd/hits"] = np.arange(6.0)
        file["gmd/hits_len"] = np.array([1, 2, 0, 0, 3])
        file["gmd/label"] = np.array(["a", "b", "c", "d", "e"], dtype=h5py.string_dtype())
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in a directory of its own, and another experiment's file outside it."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = SECRET
    SECRET.tofile(tmp_path / "secret.bin")
    (tmp_path / "run").mkdir()
    return write(tmp_path / "run" / "run.h5")


def virtual(file: h5py.File, source: str, dataset: str = "x") -> None:
    layout = h5py.VirtualLayout((5,), "u8")
    layout[:] = h5py.VirtualSource(source, dataset, (5,))
    file.create_virtual_dataset("gmd/stolen", layout)


def virtual_pattern(file: h5py.File, source: bytes) -> None:
    """A virtual dataset of any number of files: the k-th has its k-th block."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    space = h5py.h5s.create_simple((5,), (h5py.h5s.UNLIMITED,))
    space.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (5,), (5,))
    made.set_virtual(space, source, b"x", h5py.h5s.create_simple((5,)))
    shape = h5py.h5s.create_simple((5,), (h5py.h5s.UNLIMITED,))
    h5py.h5d.create(file["gmd"].id, b"stolen", h5py.h5t.NATIVE_UINT64, shape, made)


def linked_directory(file: h5py.File, outside: Path) -> None:
    (outside / "run" / "inside").symlink_to(outside)
    virtual(file, "inside/secret.h5")


def linked_file(file: h5py.File, outside: Path) -> None:
    (outside / "run" / "part.h5").symlink_to(outside / "secret.h5")
    file["gmd/stolen"] = h5py.ExternalLink("part.h5", "/x")


def through_a_neighbour(file: h5py.File, outside: Path) -> None:
    with h5py.File(outside / "run" / "part.h5", "w") as neighbour:
        neighbour["x"] = h5py.ExternalLink("../secret.h5", "/x")
    file["gmd/stolen"] = h5py.ExternalLink("part.h5", "/x")


def soft_through_external(file: h5py.File, outside: Path) -> None:
    file["away"] = h5py.ExternalLink(str(outside / "secret.h5"), "/")
    file["gmd/stolen"] = h5py.SoftLink("/away/x")


def external_storage(file: h5py.File, outside: Path) -> None:
    file.create_dataset("gmd/stolen", (5,), "u8", external=[(str(outside / "secret.bin"), 0, 40)])


def external_storage_from_here(file: h5py.File, outside: Path) -> None:
    file.create_dataset("gmd/stolen", (5,), "u8", external=[("secret.bin", 0, 40)])


OUT: dict[str, Callable[[h5py.File, Path], object]] = {
    "external link": lambda f, out: f.__setitem__("gmd/stolen", h5py.ExternalLink(str(out / "secret.h5"), "/x")),
    "external link, relative": lambda f, out: f.__setitem__("gmd/stolen", h5py.ExternalLink("../secret.h5", "/x")),
    "external link in a deep group": lambda f, out: f.__setitem__("a/b/c", h5py.ExternalLink("../secret.h5", "/x")),
    "soft link through an external one": soft_through_external,
    "external link of a neighbour": through_a_neighbour,
    "link of the file system to a file": linked_file,
    "virtual source": lambda f, out: virtual(f, str(out / "secret.h5")),
    "virtual source, relative": lambda f, out: virtual(f, "../secret.h5"),
    "virtual source, there and back": lambda f, out: virtual(f, "../run/../secret.h5"),
    "virtual source through a linked directory": linked_directory,
    "virtual source by a pattern": lambda f, out: virtual_pattern(f, b"../secret%b.h5"),
    "external storage": external_storage,
    "external storage in the working directory": external_storage_from_here,
}


@pytest.mark.parametrize("way", OUT)
def test_nothing_leads_out(run: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = run.parents[1]
    monkeypatch.chdir(outside)  # where HDF5 would find relative names that are not beside the file
    with h5py.File(run, "a") as file:
        OUT[way](file, outside)
    for path in (run, run.parent):
        if path.is_dir() and len(list(path.glob("*.h5"))) > 1:
            continue
        with pytest.raises(ConfinementError) as caught:
            open_hdf5(SourceRef(str(path)))
        assert "\n" not in str(caught.value)
        assert str(run.parent) in str(caught.value)


def test_the_attacks_are_real(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py itself would read the other experiment's file."""
    outside = run.parents[1]
    monkeypatch.chdir(outside)
    for way in ("external link", "virtual source", "external storage", "soft link through an external one"):
        with h5py.File(run, "a") as file:
            file.pop("gmd/stolen", None)
            file.pop("away", None)
            OUT[way](file, outside)
        with h5py.File(run) as file:
            np.testing.assert_array_equal(file["gmd/stolen"][...], SECRET)


def test_a_name_that_is_only_in_the_working_directory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    with h5py.File(run, "a") as file:
        virtual(file, "secret.h5")
    with h5py.File(run) as file:
        np.testing.assert_array_equal(file["gmd/stolen"][...], SECRET)
    with pytest.raises(FormatError, match="there is no such file"):
        open_hdf5(SourceRef(str(run)))


def test_the_run_itself_may_not_be_a_link_out(run: Path) -> None:
    (run.parent / "other.h5").symlink_to(run.parents[1] / "secret.h5")
    with pytest.raises(ConfinementError):
        open_hdf5(SourceRef(str(run.parent / "other.h5")))


def test_inside_the_directory_names_are_followed(run: Path) -> None:
    with h5py.File(run.parent / "part.h5", "w") as file:
        file["x"] = SECRET
        file.create_dataset("compressed", data=np.ones((5, 900)), chunks=(2, 900), compression="gzip")
    with h5py.File(run, "a") as file:
        virtual(file, "part.h5")
        file["gmd/linked"] = h5py.ExternalLink(str(run.parent / "part.h5"), "/x")
        file["gmd/chunks"] = h5py.ExternalLink("part.h5", "/compressed")
        file["gmd/again"] = h5py.SoftLink("/gmd/energy")  # the same dataset: shown once
        file["gmd/nothing"] = h5py.SoftLink("/none")
    source = open_hdf5(SourceRef(str(run)))
    assert source.read("/", "gmd.stolen", slice(0, 5)).tolist() == SECRET.tolist()
    assert source.read("/", "gmd.linked", slice(1, 3)).tolist() == SECRET[1:3].tolist()
    assert source.read("/", "gmd.chunks", slice(0, 5)).all()
    assert source.index.nodes["/"].variables["gmd.chunks"].codecs == ()
    assert ("gmd.again" in source.index.nodes["/"].variables) != ("gmd.energy" in source.index.nodes["/"].variables)
    before = source.index.snapshot
    source.close()
    with h5py.File(run.parent / "part.h5", "a") as file:
        file["x"][0] = 1
    assert open_hdf5(SourceRef(str(run))).index.snapshot != before


def test_groups_that_hold_themselves(run: Path) -> None:
    with h5py.File(run, "a") as file:
        file["gmd/round"] = file["/"]
        file["gmd/soft"] = h5py.SoftLink("/gmd/soft")
    assert open_hdf5(SourceRef(str(run))).index.events == 5


def test_names_that_are_paths(run: Path) -> None:
    with h5py.File(run, "a") as file:
        group = file.id
        space, kind = h5py.h5s.create_simple((5,)), h5py.h5t.NATIVE_DOUBLE
        h5py.h5d.create(group, b"..", kind, space)
        h5py.h5g.create(group, b"...")
    source = open_hdf5(SourceRef(str(run)))
    assert "cannot be the name" in source.index.attrs["hdf5_unread"]["/.."]


def test_absurd_sizes_allocate_nothing(run: Path) -> None:
    big = 1 << 40
    with h5py.File(run, "a") as file:
        file.create_dataset("gmd/event", (5, big), "u1", chunks=(1, 1 << 20))
        file.create_dataset("gmd/many", (big,), "f8", chunks=(1 << 20,))
        file.create_dataset("gmd/text", (5,), "S100000")
        file["gmd/long"] = np.array(["x" * 100_000] * 5, dtype=h5py.string_dtype())
    unread = open_hdf5(SourceRef(str(run))).index.attrs["hdf5_unread"]
    assert set(unread) == {"/gmd/event", "/gmd/many", "/gmd/text", "/gmd/long"}
    with h5py.File(run, "a") as file:
        del file["timestamp"]
        file.create_dataset("timestamp", (big,), "u8", chunks=(1 << 20,))
    began = time.perf_counter()
    with pytest.raises(FormatError, match="claims"):
        open_hdf5(SourceRef(str(run)))
    assert time.perf_counter() - began < 5


def test_lengths_that_do_not_fit(run: Path) -> None:
    with h5py.File(run, "a") as file:
        file["gmd/hits_len"][...] = [1, -5, 1 << 40, 0, 3]
    source = open_hdf5(SourceRef(str(run)))
    assert source.index.nodes["/gmd"].attrs["hits"] == [0, 1, 2, 3, 4, 5]
    assert "/gmd/hits" in source.index.attrs["hdf5_remarks"]


def everything(path: Path) -> None:
    """Open and read all of a file."""
    source = open_hdf5(SourceRef(str(path)))
    for node, members in source.index.nodes.items():
        for name, variable in members.variables.items():
            source.read(node, name, slice(0, variable.shape[0]))
    for _ in source.validate():
        pass
    source.close()


def test_every_truncation_is_an_error_of_one_line(run: Path) -> None:
    data = run.read_bytes()
    everything(run)
    cut = run.parent / "cut.h5"
    for length in [*range(0, 256, 7), *range(256, len(data), 397)]:
        cut.write_bytes(data[:length])
        with pytest.raises(FormatError) as caught:
            everything(cut)
        assert str(cut) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_bytes_missing_behind_the_index_are_found(run: Path, tmp_path: Path) -> None:
    source = open_hdf5(SourceRef(str(run)))
    source.read("/", "timestamp", slice(0, 1))
    os.truncate(run, 600)
    with pytest.raises(FormatError, match="bytes early"):
        source.read("/", "gmd.image", slice(0, 5))


@pytest.mark.parametrize("way", ["dataset", "attribute"])
def test_heaps_that_libhdf5_never_leaves(run: Path, way: str) -> None:
    with h5py.File(run, "a") as file:
        if way == "attribute":
            del file["gmd/label"]
            file["gmd/energy"].attrs["units"] = "mJ"
    data = bytearray(run.read_bytes())
    heap = data.rindex(b"GCOL")
    data[heap + 24 : heap + 32] = bytes(8)  # its first object's size: the walk then meets free space of size 0
    run.write_bytes(data)
    with pytest.raises(FormatError, match="heap of strings"):
        open_hdf5(SourceRef(str(run)))


FLIP = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_hdf5_hostile import everything
from lcls_dask.errors import LclsError
path, data = Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()
first, count = map(int, sys.argv[4:])
for seed in range(first, first + count):
    rng = random.Random(seed)
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        mutated[rng.randrange(len(mutated))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    path.write_bytes(mutated)
    print(seed, flush=True)
    try:
        everything(path)
    except (LclsError, PermissionError) as error:
        assert "\\n" not in str(error), error
"""


def flip(directory: Path, original: Path, first: int, count: int) -> tuple[int, str]:
    """Mutate and read in another process, under a limit of memory; how it ended, and its last words."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    done = subprocess.run(
        [sys.executable, "-c", FLIP, str(Path(__file__).parent), str(directory / "flip.h5"), str(original),
         str(first), str(count)],
        capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout.split()[-1:] and done.stdout.split()[-1] + done.stderr[-2000:]


def test_flipped_bytes_never_crash_or_hang(run: Path) -> None:
    code, words = flip(run.parent, run, 0, 300)
    assert code == 0, f"seed {words}"


def test_unreadable_is_said(run: Path) -> None:
    empty = run.parent / "empty.h5"
    empty.write_bytes(b"")
    with pytest.raises(FormatError, match=r"empty\.h5"):
        open_hdf5(SourceRef(str(empty)))
    with h5py.File(empty, "w"):
        pass
    with pytest.raises(LclsError, match="not CXI"):
        open_hdf5(SourceRef(str(empty)))
