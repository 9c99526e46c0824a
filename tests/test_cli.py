"""The command line as people and programs meet it: exit codes, one line an error, tables and JSON."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcls_dask import cli, simulate

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    "compile",
    "demo",
    "doctor",
    "export",
    "identity",
    "info",
    "issue",
    "ls",
    "serve",
    "sfx",
    "simulate",
    "tof",
    "token",
    "validate",
]


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "scan"
    simulate(path, "scan", events=40, seed=1)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_commands_are_these() -> None:
    assert sorted(cli.lcls_dask.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_is_documented(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert "Usage: lcls-dask " + command in out
    assert f"`lcls-dask {command}" in (ROOT / "docs" / "command-line.md").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["info"],
        ["info", "x", "--bogus"],
        ["export", "x", "y.zarr", "--events", "5"],
        ["export", "x", "y.docx"],
        ["export", "x", "y"],
        ["export", "x", "y.h5", "--compression", "blosc"],
        ["export", "x", "y.nc", "--compression", "zstd"],
        ["simulate"],
        ["simulate", "x", "--seed", "-1"],
        ["simulate", "x", "--rate-hz", "-1"],
        ["simulate", "x", "--rate-hz", "0"],
        ["simulate", "x", "--events", "0"],
        ["info", "x", "--run", "-1"],
    ],
)
def test_a_bad_call_is_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "--help" in err


@pytest.mark.parametrize("command", ["info", "validate", "ls"])
def test_a_failure_is_1_and_one_line_that_names_the_path(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, command, tmp_path / "nowhere")
    assert code == 1
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "nowhere" in err
    assert "Traceback" not in err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys)
    assert (code, out) == (2, "")
    assert "Commands:" in err


def test_debug_shows_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cli.main(["--debug", "info", str(tmp_path / "nowhere")])


def test_info_as_a_table(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "info", run_path)
    assert code == 0
    assert "rixsim01" in out
    assert "try: run.dataset(" in out


def test_info_as_json(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "info", run_path, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["experiment"], told["run"], told["events"], told["state"]) == ("rixsim01", 1, 40, "ended")
    assert told["start"] < told["stop"]
    names = {variable["name"] for variable in told["variables"]}
    assert {"timestamp", "time"} <= names
    # xarray keeps the units of times to itself
    timeless = [variable for variable in told["variables"] if "datetime" not in variable["dtype"]]
    assert all({"units", "long_name"} <= variable["attrs"].keys() for variable in timeless)


def test_info_of_a_snapshot_that_is_not_there(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "info", run_path, "--snapshot", "0" * 32)
    assert code == 1
    assert len(err.splitlines()) == 1


def test_info_of_real_runs(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = {"test_hsd.xtc2": 84, "test_jungfrau05M_calib.xtc2": 2, "mixed_rate": 100}
    for name, expected in events.items():
        code, out, _ = call(capsys, "info", real_data / "lcls2" / name, "--json")
        assert code == 0
        assert json.loads(out)["events"] == expected


def test_ls(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "ls", run_path.parent)
    assert code == 0
    assert "2026-" in out
    code, out, _ = call(capsys, "ls", run_path.parent, "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert (row["run"], row["events"], row["state"]) == (1, 40, "ended")


def test_ls_of_a_file_says_what_to_do(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stream, *_) = sorted(run_path.glob("*.xtc2"))
    code, out, err = call(capsys, "ls", stream)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert stream.name in err
    assert "lcls-dask info" in err


def test_a_cache_that_cannot_be_written_is_one_line(run_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    code = "import sys; from lcls_dask.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "info", str(run_path)],
        env={**os.environ, "LCLS_INDEX_CACHE": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert "rixsim01" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("lcls-dask: warning: ")
    assert "lcls.index-cache" in line
    assert ".py" not in line


def test_validate_a_sound_run(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "validate", run_path, "--json")
    told = json.loads(out)
    assert (code, told["ok"], told["events"]) == (0, True, 40)


def test_validate_reports_a_cut_file(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "validate", real_data / "lcls2" / "test_hsd.xtc2")
    assert code == 0  # what is there can be read
    assert "truncated" in out
    assert "430884" in out


def test_validate_fails_where_something_cannot_be_read(
    run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stream, *_) = sorted(run_path.glob("*.xtc2"))
    broken = tmp_path / stream.name
    data = bytearray(stream.read_bytes())
    # an extent in the middle of an event that leads out of it
    at = len(data) * 2 // 3
    data[at : at + 4000] = b"\xff" * 4000
    broken.write_bytes(data)
    code, out, _ = call(capsys, "validate", broken, "--json")
    told = json.loads(out)
    assert told["ok"] is (code == 0)
    assert any(finding["kind"] in {"corrupt", "truncated"} for finding in told["findings"])


def test_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    code, out, _ = call(capsys, "simulate", target, "--kind", "scan", "--events", "12", "--seed", "3")
    assert code == 0
    assert "12 events" in out
    assert (target / "truth.json").is_file()
    code, _, err = call(capsys, "simulate", target, "--kind", "scan", "--events", "12")
    assert code == 1
    assert len(err.splitlines()) == 1


def test_export(run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "run.zarr"
    code, out, err = call(capsys, "export", run_path, target, "--events", "0:10", "-v", "gmd.*")
    assert (code, err) == (0, "")
    assert out.strip() == str(target)
    code, out, _ = call(capsys, "info", target, "--json")
    assert code == 0
    assert json.loads(out)["events"] == 10
    code, _, err = call(capsys, "export", run_path, tmp_path / "run.docx")
    assert code == 2
    assert ".zarr" in err
    assert not list(tmp_path.glob("run.docx*"))


@pytest.mark.long
def test_what_is_compiled_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    kept = []
    for _ in range(2):
        code, out, _ = call(capsys, "compile", "--json")
        assert (code, sorted(json.loads(out))) == (0, ["indexing", "peaks", "sfx", "tof"])
        kept.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")})
    assert len(kept[0]) > 100
    assert kept[1] == kept[0]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "doctor", "--json")
    checks = {check["check"]: check for check in json.loads(out)}
    assert code == 0
    assert checks["sample read"]["state"] == "ok"
    assert checks["index cache"]["state"] == "ok"


@pytest.mark.filterwarnings("ignore:.*indexes can't be kept there")
def test_doctor_finds_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("LCLS_INDEX_CACHE", str(tmp_path / "file"))
    code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "LCLS_INDEX_CACHE" in out


def test_markup_in_names_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lcls_dask.cli.output import print_table

    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(("name",), [("[red]x[/red]",)])
    assert "[red]x[/red]" in capsys.readouterr().out


def test_an_interrupt_is_130_and_one_line(tmp_path: Path) -> None:
    # tests that a shell started in the background ignore SIGINT, and so would what they start
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from lcls_dask.cli import main; sys.exit(main())"
    )
    # written at 10 events a second, this would take an hour
    arguments = ["simulate", str(tmp_path / "slow"), "--kind", "scan", "--events", "36000", "--rate-hz", "10"]
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob("slow/*.xtc2.inprogress")) and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.splitlines() == ["lcls-dask: interrupted"]


def test_a_reader_that_leaves_is_no_traceback(run_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from lcls_dask.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "info", str(run_path), "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""
