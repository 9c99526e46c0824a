"""Policy and revocations: read again without a restart, whole or not at all, in every process."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from security_world import POLICY, World, make_world, right

from lcls_dask.errors import PolicyError
from lcls_dask.security import (
    Access,
    Authoriser,
    FileRevocations,
    Operation,
    PolicyFile,
    Reason,
    create_revocations,
    revoke,
)
from lcls_dask.security.capability import read_unverified
from lcls_dask.security.policy import parse_policy
from lcls_dask.security.revocations import revoked_lines

BASIC = {Operation.LIST, Operation.INFO, Operation.READ}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def replace(path: Path, text: str) -> None:
    """As editors and configuration systems do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def test_who_may_do_what(world: World) -> None:
    policy = world.policy
    assert policy.operations("alice", "tmox42619") == BASIC | {Operation.DIRECT}
    assert policy.operations("carol", "tmox42619") == BASIC | {Operation.DIRECT}
    assert policy.operations("bob", "tmox42619") == set()
    assert policy.operations("bob", "cxilr6716") == {Operation.LIST, Operation.INFO}
    assert policy.operations("alice", "nosuch123") == set()
    assert policy.experiments("alice") == {"tmox42619", "xpptut15"}
    assert policy.experiments("mallory") == set()


@pytest.mark.parametrize(
    "text",
    [
        "[experiments",
        "experiments = 3",
        "[experiments]\ntmox42619 = 3",
        "[experiments.TMO]\nmembers = []",
        '[experiments."tmo*"]\nmembers = ["alice"]',
        '[experiments.tmox42619]\nmembers = "alice"',
        '[experiments.tmox42619]\nmembers = ["@nobody"]',
        "[experiments.tmox42619]\nmembers = [1]",
        '[experiments.tmox42619]\nmember = ["alice"]',
        '[experiments.tmox42619]\nmembers = ["alice"]\noperations = ["everything"]',
        '[experiments.tmox42619]\nmembers = ["alice"]\ndirect_reads = "yes"',
        '[experiment.tmox42619]\nmembers = ["alice"]',
        "[groups]\nstaff = 3",
        "source = 3",
        "x = " + "[" * 20_000,
        "x = " + "1" * 5_000,
        "[source]\nuse = 'no.such.module:x'",
        "[source]\nuse = 'no-such-entry-point'",
        "[source]\nuse = 'os:no_such_name'",
        "\xff",
    ],
)
def test_a_malformed_policy_is_refused_and_the_old_one_stays(
    world: World, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = world.path / "bad.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PolicyError):
        PolicyFile(path)
    before = world.policy.version
    world.policy_file.write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            world.later(1)
            assert world.policy.operations("alice", "tmox42619") == BASIC | {Operation.DIRECT}
    assert world.policy.version == before
    assert [record.levelname for record in caplog.records].count("WARNING") == len(caplog.records) > 0
    assert str(world.policy_file) in caplog.text
    replace(world.policy_file, POLICY.replace('"bob"', '"dave"'))
    world.later(1)
    assert world.policy.operations("dave", "xpptut15") == BASIC
    assert world.policy.operations("bob", "xpptut15") == set()


def test_a_policy_that_vanishes_stays_in_force(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.policy_file.unlink()
    world.later(5)
    assert world.policy.operations("alice", "tmox42619")
    world.policy_file.write_text("")
    world.later(1)
    assert not world.policy.operations("alice", "tmox42619")
    with pytest.raises(PolicyError, match="cannot be read"):
        PolicyFile(world.path / "nowhere.toml")


def test_a_change_counts_within_a_second_and_not_before_a_look(world: World) -> None:
    alice = world.person("alice")
    token = world.issuer.token(alice.peer, [right()])
    assert world.decide(alice, token).allowed
    replace(world.policy_file, POLICY.replace('["alice", "carol"]', '["carol"]'))
    assert world.decide(alice, token).allowed
    world.later(1)
    assert world.decide(alice, token).reason == Reason.NOT_A_MEMBER
    replace(world.policy_file, POLICY)
    world.later(1)
    assert world.decide(alice, token).allowed


def test_two_changes_of_one_size_in_one_tick(world: World) -> None:
    """What stat cannot tell apart is found all the same, as a file just touched is read again."""
    status = world.policy_file.stat()
    for name in ("erin0", "frank", "grace"):
        world.policy_file.write_text(POLICY.replace('"carol"', f'"{name}"'))
        os.utime(world.policy_file, ns=(status.st_atime_ns, status.st_mtime_ns))
        world.later(1)
        assert world.policy.operations(name, "tmox42619")


def test_a_policy_that_anybody_can_write_is_refused(world: World) -> None:
    world.policy_file.chmod(0o666)
    with pytest.raises(PolicyError, match="chmod o-w"):
        PolicyFile(world.policy_file)
    before = world.policy.version
    world.policy_file.write_text("")
    world.later(1)
    assert world.policy.operations("alice", "tmox42619")
    assert world.policy.version == before


def test_readers_never_see_half_a_policy(world: World) -> None:
    """Replaced all the time by another process; every look gives one of the two, whole."""
    texts = [f'[experiments.e{i:04d}]\nmembers = ["{user}"]\n' for user in ("alice", "bob") for i in range(400)]
    first, second = "".join(texts[:400]), "".join(texts[400:])
    replace(world.policy_file, first)
    code = (
        "import os, sys\npath, texts = sys.argv[1], sys.argv[2:]\n"
        "for i in range(400):\n"
        "    open(path + '.n', 'w').write(open(texts[i % 2]).read()); os.replace(path + '.n', path)\n"
    )
    for name, text in (("a", first), ("b", second)):
        (world.path / name).write_text(text)
    policy = PolicyFile(world.policy_file, interval=0)
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(world.policy_file), str(world.path / "a"), str(world.path / "b")]
    )
    while writer.poll() is None:
        assert len(policy.experiments("alice")) in (0, 400)
    assert writer.returncode == 0
    assert len(policy.experiments("bob")) == 400  # what was written last
    assert policy._file.generation >= 1


class Portal:
    """A facility's own source, named in the policy by its dotted name."""

    opened = 0
    broken = False
    members: dict[str, set[str]] = {}  # noqa: RUF012

    def __init__(self, url: str) -> None:
        type(self).opened += 1
        self.url = url

    @property
    def version(self) -> object:
        if self.broken:
            raise ConnectionError("the portal is away")
        return repr(sorted(self.members.items()))

    def operations(self, user: str, experiment: str) -> frozenset[Operation]:
        return frozenset(BASIC) if experiment in self.members.get(user, ()) else frozenset()

    def experiments(self, user: str) -> frozenset[str]:
        return frozenset(self.members.get(user, ()))


SOURCE = POLICY + '\n[source]\nuse = "test_security_policy:Portal"\noptions = { url = "https://portal" }\n'


def test_a_facilitys_own_source(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    portal = sys.modules["test_security_policy"].Portal
    monkeypatch.setattr(portal, "opened", 0)
    monkeypatch.setattr(portal, "members", {"alice": {"mfxl1234"}})
    replace(world.policy_file, SOURCE)
    world.later(1)
    assert world.policy.experiments("alice") == {"tmox42619", "xpptut15", "mfxl1234"}
    alice = world.person("alice")
    token = world.issuer.token(alice.peer, [right("mfxl1234"), right()])
    assert world.decide(alice, token, experiment="mfxl1234").allowed
    monkeypatch.setattr(portal, "members", {})
    world.later(0.25)
    assert world.decide(alice, token, experiment="mfxl1234").reason == Reason.NOT_A_MEMBER
    replace(world.policy_file, SOURCE.replace('"bob"', '"dave"'))
    world.later(1)
    assert world.policy.operations("dave", "xpptut15")
    assert portal.opened == 1
    monkeypatch.setattr(portal, "broken", True)
    world.later(0.25)
    assert world.decide(alice, token).reason == Reason.POLICY_FAILED
    assert "the portal is away" in caplog.text


def test_groups_and_members_add_up() -> None:
    table = parse_policy(
        b'[groups]\ng = ["alice"]\n[experiments.tmox42619.members]\nalice = ["request"]\n"@g" = ["list"]\n'
    )
    assert table.grants["alice"]["tmox42619"] == {Operation.REQUEST, Operation.LIST}
    granted = parse_policy(b'[experiments.tmox42619]\nmembers = ["alice"]\noperations = ["list", "direct"]').grants
    assert granted["alice"]["tmox42619"] == {Operation.LIST}


def test_revocations_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "revoked"
    with pytest.raises(PolicyError, match="cannot be read"):
        FileRevocations(path)
    revoke(path, ["0A1B", "ff"], "lost\nlaptop", clock=lambda: 0.0)
    assert revoked_lines(path) == [(i, "1970-01-01T00:00:00+00:00", "lost laptop") for i in ("0a1b", "ff")]
    listed = FileRevocations(path, interval=0)
    assert ["0a1b" in listed, "0a1" in listed, "lost" in listed, None in listed] == [True, False, False, False]
    with pytest.raises(PolicyError, match="hexadecimal"):
        revoke(path, ["cc", "not hex"], "x")
    assert "cc" not in listed
    # a writer that died in its line costs neither that nor the next
    path.write_bytes(path.read_bytes() + b"abc 1970")
    revoke(path, ["dd"], "x")
    path.write_bytes(path.read_bytes() + b"!garbage!\n")
    revoke(path, ["ee"], "x")
    assert all(identifier in listed for identifier in ("0a1b", "ff", "abc", "dd", "ee"))
    assert "malformed" in caplog.text
    # as people write by hand
    path.write_bytes(path.read_bytes() + b"  AB12\r\n# a word\n\nab13\tsince when\n")
    assert all(identifier in listed for identifier in ("ab12", "ab13", "ee"))
    assert ("ab12", "", "") in revoked_lines(path), "what is in force here is told to all gateways"
    create_revocations(path)
    assert "ee" in FileRevocations(path)


def test_revocations_from_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    code = (
        "import sys\nfrom lcls_dask.security.revocations import revoke\n"
        "for i in range(50): revoke(sys.argv[1], [f'{int(sys.argv[2]):02x}{i:04x}'], 'x' * 200)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(i)]) for i in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    listed = FileRevocations(path)
    assert all(f"{i:02x}{j:04x}" in listed for i in range(4) for j in range(50))
    assert len(path.read_bytes().splitlines()) == 200


def test_another_process_honours_a_revocation_within_5_s(world: World) -> None:
    """A second process decides, with its own clocks, while this one revokes."""
    alice = world.person("alice")
    token = world.issuer.token(alice.peer, [right()])
    file = world.path / "token"
    file.touch(0o600)
    file.write_text(token)
    code = """
import sys, time
from pathlib import Path
from lcls_dask.security import *
base = Path(sys.argv[1])
peer = load_identity(base / "alice-user-None").peer
token = (base / "token").read_text()
authoriser = Authoriser(
    IssuerKeys.load(base / "issuer" / "biscuit.pub"),
    PolicyFile(base / "policy.toml"),
    FileRevocations(base / "revoked.txt"),
)
last = None
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    decision = authoriser.decide(peer, token, Access(Operation.READ, "tmox42619", 15, "hsd"))
    if decision.reason != last:
        last = decision.reason
        print(decision.reason, flush=True)
    if last == "revoked":
        break
    time.sleep(0.01)
"""
    reader = subprocess.Popen([sys.executable, "-c", code, str(world.path)], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ok\n"
    start = time.monotonic()
    revoke(world.revoked_file, [read_unverified(token).revocation_ids[0]], "lost")
    assert reader.stdout.readline() == "revoked\n"
    assert time.monotonic() - start < 5
    assert reader.wait(30) == 0
    reader.stdout.close()


def test_a_broken_policy_source_fails_closed_from_the_start(world: World) -> None:
    class Broken:
        version = 1

        def operations(self, user: str, experiment: str) -> frozenset[Operation]:
            raise TimeoutError

        def experiments(self, user: str) -> frozenset[str]:
            raise TimeoutError

    alice = world.person("alice")
    token = world.issuer.token(alice.peer, [right()])
    authoriser = Authoriser(world.keys, Broken(), world.revocations, world.clock)
    access = Access(Operation.READ, "tmox42619", 15, "hsd")
    assert authoriser.decide(alice.peer, token, access).reason == Reason.POLICY_FAILED
    with pytest.raises(PolicyError, match="try again"):  # not: that she has none
        authoriser.experiments(alice.peer, token)
