"""What outlives the gateway's processes, in SQLite and in a real PostgreSQL."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcls_dask.errors import StateError, UriError
from lcls_dask.gateway.audit import AuditLog, Entry
from lcls_dask.gateway.limits import Limits, Usage, clear_row, create_table
from lcls_dask.gateway.state import State
from lcls_dask.gateway.worker import listening_socket


def _postgresql_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) or [Path(shutil.which("pg_ctl") or "/nowhere")]
    return found[-1].parent if found[-1].exists() else None


class Postgres:
    """A server of its own, on a free port, in a directory of its own."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs, self._data = programs, directory / "data"
        self._user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(directory, account.pw_uid, account.pw_gid)
        with listening_socket("127.0.0.1", 0, listen=False) as reserved:
            self.port = reserved.getsockname()[1]
        self._run("initdb", "-D", str(self._data), "-U", "gateway", "-A", "trust", "-N")
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"\nport = {self.port}\nlisten_addresses = '127.0.0.1'\n")
            file.write(f"unix_socket_directories = '{directory}'\nfsync = off\n")
        self.url = f"postgresql+psycopg://gateway@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._data / "log"), "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            text=True,
            cwd="/",
        )
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    programs = _postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs (initdb, pg_ctl) are not installed: the state was tested with SQLite ONLY")
    directory = Path(tempfile.mkdtemp(prefix="pg-"))  # a path short enough for its socket
    directory.chmod(0o755)
    server = Postgres(programs, directory)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    if request.param == "sqlite":
        made = State(f"sqlite:///{tmp_path / 'gateway.db'}")
    else:
        made = State(request.getfixturevalue("postgres").url)
    made.migrate()
    yield made
    made.close()


def test_migrations_run_once_and_again(state: State) -> None:
    state.remember("exp1", 1, "a", {"events": 1})
    state.migrate()
    assert state.rows("exp1")[1] == ("a", {"events": 1})


def test_the_catalogue_keeps_the_last_row(state: State) -> None:
    state.remember("exp2", 1, "a", {"events": 1})
    state.remember("exp2", 1, "b", {"events": 2})
    state.remember("exp2", 3, "c", {"detectors": ["hsd"]})
    assert state.rows("exp2") == {1: ("b", {"events": 2}), 3: ("c", {"detectors": ["hsd"]})}
    assert state.rows("exp3") == {}


def test_revocations_are_shared_once(state: State) -> None:
    state.share_revocations([("0a", "2026-01-01T00:00:00", "lost"), ("0a", "2026-01-01T00:00:00", "lost")])
    state.share_revocations([("0a", "2026-01-02T00:00:00", "lost"), ("0b", "2026-01-02T00:00:00", "left")])
    assert {"0a", "0b"} <= state.revoked()


def test_the_audit_is_indexed_once_whatever_was_cut(state: State, tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    user = f"alice-{tmp_path.name}"
    log.write(
        [Entry(user=user, experiment="exp1", run=14, key="µ/c/0", bytes=1 << 40, allowed=True, reason="ok", token="ab")]
    )
    assert state.index_audit(tmp_path) == 0
    assert state.index_audit(tmp_path) == 0
    with log.path.open("ab") as file:
        file.write(b'{"time": 1, "us')  # a process was killed in the middle of a line
    assert state.index_audit(tmp_path) == 0
    with log.path.open("ab") as file:
        file.write(b"\n")
    log.write([Entry(user=user, reason="no token")])
    assert state.index_audit(tmp_path) == 1
    first, second = state.audit(user=user)
    assert (first["run"], first["key"], first["bytes"], first["decision"], first["token"]) == (
        14,
        "µ/c/0",
        1 << 40,
        "allowed",
        "ab",
    )
    assert (second["decision"], second["reason"], second["count"]) == ("refused", "no token", 1)
    # what nobody writes, but a disk may give: it costs itself, and nothing that comes after it
    odd = json.loads(log.path.read_bytes().splitlines()[0]) | {"user": user}
    with log.path.open("a") as file:
        for change in ({"key": "\ud800\0"}, {"key": ["a"]}, {"bytes": 1 << 70}):
            file.write(json.dumps(odd | change) + "\n")
        file.write('{"time": 1}\n')
    log.write([Entry(user=user, allowed=True, reason="the last")])
    assert state.index_audit(tmp_path) == 1
    assert "the last" in [row["reason"] for row in state.audit(user=user)]


def test_while_postgresql_is_away_errors_say_so_and_nothing_is_lost(postgres: Postgres, tmp_path: Path) -> None:
    state = State(postgres.url)
    state.migrate()
    log = AuditLog(tmp_path)
    user = f"bob-{tmp_path.name}"
    log.write([Entry(user=user, allowed=True)])
    postgres.stop()
    try:
        with pytest.raises(StateError, match=r"^postgresql\+psycopg://[^\n]*; see whether the database runs$"):
            state.index_audit(tmp_path)
        log.write([Entry(user=user, allowed=True)])
    finally:
        postgres.start()
    state.index_audit(tmp_path)
    assert len(state.audit(user=user)) == 2
    state.close()


def test_the_database_file_is_private(tmp_path: Path) -> None:
    state = State(f"sqlite:///{tmp_path / 'gateway.db'}")
    state.migrate()
    assert (tmp_path / "gateway.db").stat().st_mode & 0o777 == 0o600
    state.close()


@pytest.mark.parametrize("url", ["", "nonsense", "nosuch://x", "http://example"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UriError, match="URL cannot be understood"):
        State(url)


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    with listening_socket("127.0.0.1", 0, listen=False) as nobody:
        state = State(f"postgresql+psycopg://gateway:secret@127.0.0.1:{nobody.getsockname()[1]}/x")
        with pytest.raises(StateError) as caught:
            state.revoked()
    assert "secret" not in str(caught.value)
    state.close()


def test_equal_refusals_are_counted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    for number in range(1000):
        log.write([Entry(user="mallory", reason="no token")])
        log.write([Entry(user="mallory", reason="no token", run=number % 2)])
    assert len(log.path.read_text().splitlines()) == 3
    log.close()
    records = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert sum(record["count"] for record in records) == 2000
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_what_is_allowed_is_written_each_time(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    for _ in range(3):
        log.write([Entry(user="alice", allowed=True)])
    assert len(log.path.read_text().splitlines()) == 3


def test_an_audit_that_cannot_be_written_is_an_error() -> None:
    log = AuditLog(Path(tempfile.mkdtemp()))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    os.close(full)
    with pytest.raises(OSError, match="No space left"):
        log.write([Entry(user="alice", allowed=True)])


def test_limits_count_over_processes(tmp_path: Path) -> None:
    create_table(tmp_path / "usage", rows=2)
    one, two = (Usage(tmp_path / "usage", row, 2, Limits(requests=10, bytes=100, connections=2)) for row in (0, 1))
    assert one.connected("alice")
    assert two.connected("alice")
    assert not one.connected("alice")
    one.disconnected("alice")
    assert one.connected("bob")
    assert one.take("alice", 60)
    assert not two.take("alice", 60)
    assert two.take("bob", 60)
    one.give_back("alice", 60)
    assert two.take("alice", 200), "a single answer of any size must be possible"
    assert not one.take("alice", 1)

    answers = [usage.request("alice", now=50.0) for _ in range(6) for usage in (one, two)]
    assert answers == [None] * 10 + [1, 1]
    assert one.request("alice", now=51.05) == 1, "most of the second before still counts"
    assert two.request("alice", now=53.0) is None
    assert one.request("bob", now=50.0) is None

    clear_row(tmp_path / "usage", 1)
    assert one.take("alice", 60), "what a killed process held is given back"


def test_more_users_than_slots(tmp_path: Path) -> None:
    create_table(tmp_path / "usage", rows=1)
    usage = Usage(tmp_path / "usage", 0, 1, Limits())
    assert all(usage.take(f"user{number}", 1) for number in range(5000))
