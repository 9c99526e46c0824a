"""The demo, small: all is found, a killed worker changes nothing, no intruder gets in, and what is wrong is said."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from lcls_dask import open_run, simulate
from lcls_dask.cli import main
from lcls_dask.demo import intruder, referee, sfx, tof
from lcls_dask.demo.page import Check, Section, write_page
from lcls_dask.demo.site import acting_as, build_site, serving
from lcls_dask.errors import GatewayError
from lcls_dask.security.files import write_private
from lcls_dask.sfx.chain import analyse
from lcls_dask.tof.chain import analyse as analyse_tof


def test_demo_finds_what_was_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--events", "1200", "--frames", "12"]) == 0
    told = capsys.readouterr().out
    assert "DIFFERENT" not in told
    assert re.search(r"worker killed after \d+ of \d+ blocks +same result", told)
    assert not re.search("SUCCEEDED|NOT A", told)
    assert re.search(r"reads a chunk of her run +200, .* bytes +alice allowed: ok +allowed", told)
    assert re.search(r"stolen, with bob's certificate +401 .* +bob refused: other certificate +refused", told)
    assert told.count("  refused\n") >= 20
    page = (tmp_path / "index.html").read_text()
    assert "does not check the physics" in page
    assert page.count("data:image/png;base64,") == len(list(tmp_path.glob("*.png"))) == 10
    # nothing is fetched from anywhere
    assert not re.search(r"(src|href)='(?!data:)", page)
    # keys and tokens are gone, and were never shown
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"runs"}
    for shown in (told, re.sub(r"data:image/png;base64,[^']*", "", page)):
        assert not re.search(r"PRIVATE KEY|[A-Za-z0-9_=-]{150}", shown)


def test_demo_replaces_only_runs_that_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "runs" / "tmosim01" / "r0001" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--events", "16", "--frames", "8"]) == 1
    assert mine.read_text() == "mine"
    assert "no simulated run" in capsys.readouterr().err


def test_an_intruder_who_succeeds_is_seen(tmp_path: Path) -> None:
    """Policy lets Bob read Alice's experiment, and members the files: some of the attempts come through."""
    simulate(tmp_path / "runs" / "tmosim01" / "r0001", "tof", events=16)
    site = build_site(tmp_path / "site", tmp_path / "runs", {"alice": "tmosim01", "bob": "cxisim01"})
    write_private(site.policy, b'[experiments.tmosim01]\nmembers = ["alice", "bob"]\ndirect_reads = true\n')
    for user in ("alice", "bob"):
        write_private(site.folder / user / "token", site.token(site.folder / user).encode())
    for path in site.folder.rglob("*"):
        secret = path.suffix == ".key" or path.name == "token"
        assert path.stat().st_mode & (0o077 if secret or path.is_dir() else 0o022) == 0, path
    with serving(site) as port:
        with acting_as(site, "alice", port):
            run = open_run("lcls://tmosim01/r0001")
            variables = run.index.nodes["/"].variables
            name = next(name for name in variables if name.startswith("gmd."))
            key = "/".join([name, "c", *["0"] * len(variables[name].shape)])
            target = intruder.Target("tmosim01", 1, run.snapshot, key)
            run.source.close()
        checks = intruder.try_all(site, port, intruder.attempts(site, target, "alice", "bob"))
    wrong = [(check.name, check.verdict) for check in checks if not check.passed]
    assert wrong == [
        ("alice's run with bob's certificate and token", "SUCCEEDED"),
        ("a token for another detector", "SUCCEEDED"),  # it is for gmd*
        ("where the files are, which policy keeps to itself", "SUCCEEDED"),
    ]
    assert (site.folder.stat().st_mode & 0o777, site.audit_folder.stat().st_mode & 0o777) == (0o700, 0o700)


@pytest.mark.parametrize("name", ["test_hsd.xtc2", "test_jungfrau05M_calib.xtc2", "mixed_rate"])
def test_report_on_a_real_run(name: str, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--run", str(real_data / "lcls2" / name), "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "DIFFERENT" not in told
    if referee.available():
        assert re.search(r"values that psana reads +\d+ equal +\d+ in \d+ events +same", told)
    assert (tmp_path / "index.html").stat().st_size > 10_000


def test_a_gateway_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    site = build_site(tmp_path / "site", tmp_path / "runs", {"alice": "tmosim01"})
    write_private(site.policy, b"[experiments")
    with pytest.raises(GatewayError, match=r"did not start: .*policy"), serving(site):
        pass


def test_wrong_hits_are_seen(tmp_path: Path) -> None:
    """What is right passes; with an axis that is off, or pulses that are missed, it says so."""
    simulate(tmp_path / "run", "tof", events=1000, seed=1)
    run, told = open_run(tmp_path / "run"), tof.settings(tmp_path / "run")

    def wrong(**changes: Any) -> set[str]:
        checks = tof.check(tmp_path / "run", analyse_tof(run, replace(told, **changes)))
        return {check.name for check in checks if not check.passed}

    assert wrong() == set()
    assert "Ar 2p: mean energy" in wrong(t0=20.2)
    assert wrong(threshold=200.0) >= {"pulses found"}
    assert wrong(angles=np.arange(16) * 22.5 + 10.0) >= {"Ar 2p: tilt of it"}


def test_wrong_crystals_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "run"
    simulate(path, "sfx", events=4, seed=3)
    tree = analyse(open_run(path), tmp_path / "out", sfx.settings_of(path, 4))
    verdicts = [check.passed for check in sfx.check(path, sfx.Result(tree, b""))]
    assert verdicts == [True] * 4
    frames, peaks, crystals, merged = (
        tree[name].to_dataset().load() for name in ("frames", "peaks", "crystals", "merged")
    )
    wrong = {
        "frames": frames.assign(hit=~frames["hit"]),
        "peaks": peaks.assign(fs=peaks["fs"] + 2),
        "crystals": crystals.assign(matrix=crystals["matrix"][::-1]),
        "merged": merged.assign(intensity=merged["intensity"][::-1]),
    }
    bad = sfx.Result(xr.DataTree.from_dict(wrong), b"")
    assert [check.passed for check in sfx.check(path, bad)] == [False] * 4
    assert bad != sfx.Result(tree, b"")


def test_page_escapes_and_marks(tmp_path: Path) -> None:
    checks = (Check("a<b>", "1", "2", False), Check("c", "1", "1", True), Check("d", "", "no psana", None))
    write_page(tmp_path / "p.html", "<t>", "n&n", [Section("s", checks=checks)])
    page = (tmp_path / "p.html").read_text()
    assert "a&lt;b&gt;" in page
    assert "<td class='bad'>DIFFERENT</td>" in page
    assert "not checked" in page


@pytest.mark.skipif(not referee.available(), reason="no psana: its part of the demo is NOT tested")
def test_the_referee_sees_a_wrong_value(real_data: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "jungfrau.xtc2"
    data = bytearray((real_data / "lcls2" / "test_jungfrau05M_calib.xtc2").read_bytes())
    wrong.write_bytes(data)
    run = open_run(wrong)
    assert referee.referee(run, 1).different == ()
    found = referee.referee(run, 2)
    assert (found.events, found.unmatched) == (2, ())
    frame = run.source.read("/", "jungfrau.raw.raw", slice(0, 1))
    theirs = {f"{run.span()[0]}|jungfrau.raw.raw|0": frame[0, 0] + 1}
    assert len(referee.compare(run, theirs).different) == 1
