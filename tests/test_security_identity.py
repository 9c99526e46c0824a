"""Identities: certified's layout both ways, modes, roles, trust, TLS between them, rotation and revocation."""

import asyncio
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import certified
import pytest
from certified.encode import SAN, append_pseudonym, person_name
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from security_world import World, make_world

from lcls_dask.errors import AccessError, IdentityError, TargetExistsError
from lcls_dask.security import (
    Identity,
    Role,
    check_role,
    client_context,
    create_identity,
    find_identity,
    load_identity,
    peer_of,
    server_context,
)
from lcls_dask.security import certificates as cert
from lcls_dask.security.identity import list_certificates, rotate_identity
from lcls_dask.security.introductions import accept, introduce
from lcls_dask.security.issuer import create_issuer, open_issuer
from lcls_dask.security.peer import names_of, uris_for
from lcls_dask.security.trust import known_services, trust_authority, trusted


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def der(identity: Identity) -> bytes:
    return identity.certificate.public_bytes(Encoding.DER)


def run_certified(*arguments: object) -> str:
    """The program `certified`, as its users call it."""
    code = "import sys; from certified.certified import app; app()"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def test_layout_and_modes(tmp_path: Path) -> None:
    base = tmp_path / "alice"
    old = os.umask(0)
    try:
        create_identity(base, Role.USER, "alice")
    finally:
        os.umask(old)
    modes = {str(path.relative_to(base)): path.stat().st_mode & 0o777 for path in base.rglob("*")}
    assert {name for name, mode in modes.items() if mode == 0o600} == {"CA.key", "id.key"}
    assert {name for name, mode in modes.items() if mode == 0o644} == {"CA.crt", "id.crt"}
    assert {mode for name, mode in modes.items() if (base / name).is_dir()} == {0o700}
    assert base.stat().st_mode & 0o777 == 0o700
    with pytest.raises(TargetExistsError):
        create_identity(base, Role.USER, "alice")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
@pytest.mark.parametrize("name", ["id.key", "CA.key", "biscuit.key"])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int, name: str) -> None:
    base = create_issuer(tmp_path / "issuer").directory
    (base / name).chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {base / name}"):
        open_issuer(base)


@pytest.mark.parametrize(("name", "mode"), [("id.crt", 0o664), (".", 0o770), (".", 0o707), ("id", 0o722)])
def test_what_others_can_change_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    base = create_identity(tmp_path / "alice", Role.USER, "alice").directory
    (base / name).chmod(mode)
    with pytest.raises(IdentityError, match="chmod"):
        load_identity(base)


def test_trust_that_others_can_change_is_refused(world: World) -> None:
    alice = world.person("alice")
    (file,) = (alice.directory / "known_servers").glob("*.crt")
    file.chmod(0o666)
    with pytest.raises(IdentityError, match="chmod go-w"):
        client_context(alice)
    file.chmod(0o644)
    (alice.directory / "known_servers").chmod(0o777)
    with pytest.raises(IdentityError, match="chmod 700"):
        client_context(alice)
    (alice.directory / "known_issuers").chmod(0o777)
    with pytest.raises(IdentityError, match="chmod 700"):
        alice.issuer_keys()


@pytest.mark.parametrize("name", ["id.key", "id.crt"])
def test_a_pipe_is_no_key(tmp_path: Path, name: str) -> None:
    """To open one for reading would wait for whoever writes."""
    base = create_identity(tmp_path / "alice", Role.USER, "alice").directory
    (base / name).unlink()
    os.mkfifo(base / name, 0o600)
    with pytest.raises(IdentityError, match="no plain file"):
        load_identity(base)


def test_where_an_identity_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.config

    for name in ("LCLS_IDENTITY", "CERTIFIED_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert find_identity() == tmp_path / "xdg" / "lcls_dask" / "identity"
    monkeypatch.setenv("CERTIFIED_CONFIG", str(tmp_path / "certified"))
    assert find_identity() == tmp_path / "certified"
    with dask.config.set({"lcls.identity": str(tmp_path / "dask")}):
        assert find_identity() == tmp_path / "dask"
        assert find_identity(tmp_path / "argument") == tmp_path / "argument"
    with pytest.raises(IdentityError, match="identity create"):
        load_identity()


@pytest.mark.parametrize("key_type", ["ed25519", "secp256r1"])
@pytest.mark.parametrize(("role", "hours"), [(Role.USER, 8760), (Role.WORKER, 12), (Role.SCHEDULER, 12)])
def test_names_and_lifetimes(world: World, key_type: str, role: Role, hours: int) -> None:
    made = world.person("alice", role, "c1", key_type)
    peer = made.peer
    assert peer == peer_of(der(made))
    assert (peer.role, peer.user, peer.cluster) == (role, "alice", "c1")
    assert peer.not_after - world.clock.now == pytest.approx(hours * 3600, abs=2)
    assert peer.not_before <= world.clock.now
    assert made.certificate.issuer == world.issuer.authority.subject


@pytest.mark.parametrize(
    ("uris", "message"),
    [
        (["urn:lcls:user:alice"], "0 roles"),
        (["urn:lcls:role:user"], "0 users"),
        (["urn:lcls:role:user", "urn:lcls:role:worker", "urn:lcls:user:alice"], "2 roles"),
        (["urn:lcls:role:user", "urn:lcls:role:user", "urn:lcls:user:alice"], "2 roles"),
        (["urn:lcls:role:user", "urn:lcls:user:alice", "urn:lcls:user:bob"], "2 users"),
        (["urn:lcls:role:user", "urn:lcls:user:alice", "urn:lcls:cluster:a", "urn:lcls:cluster:b"], "2 clusters"),
        (["urn:lcls:role:admin", "urn:lcls:user:alice"], "admin"),
        (["urn:lcls:role:user", "urn:lcls:user:"], "no role, user or cluster"),
        (["urn:lcls:role:user", "urn:lcls:user:a/b"], "no role, user or cluster"),
        (["urn:lcls:role:user", "urn:lcls:user:alice\nbob"], "no role, user or cluster"),
        (["URN:LCLS:role:user", "urn:lcls:role:worker", "urn:lcls:user:alice"], "2 roles"),
        (["urn:lcls:group:x", "urn:lcls:role:user", "urn:lcls:user:alice"], "no role, user or cluster"),
        ([], "0 roles"),
    ],
)
def test_certificates_without_exactly_one_role_and_user(uris: list[str], message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        names_of(uris)


def test_an_authority_and_garbage_are_no_peer(world: World) -> None:
    assert issubclass(IdentityError, AccessError)
    with pytest.raises(IdentityError, match="authority"):
        peer_of(world.issuer.authority.public_bytes(Encoding.DER))
    for data in (b"", b"garbage", b"\x30\x82\x01\x00"):
        with pytest.raises(IdentityError):
            peer_of(data)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "a/b", "a:b", "x" * 65, "-a"])
def test_malformed_users(name: str) -> None:
    with pytest.raises(IdentityError):
        uris_for(Role.USER, name)


def test_keys_that_are_not_accepted(world: World) -> None:
    keys = [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]
    for key in keys:
        request = x509.CertificateSigningRequestBuilder().subject_name(cert.name_of("x"))
        from cryptography.hazmat.primitives.hashes import SHA256

        pem = request.sign(key, SHA256()).public_bytes(Encoding.PEM)
        with pytest.raises(IdentityError, match="not accepted"):
            world.issuer.sign(pem, Role.USER, "alice")


def test_the_issuer_decides_what_a_certificate_says(world: World) -> None:
    """What a subject says of itself is not used."""
    mallory = create_identity(world.path / "mallory", Role.GATEWAY, "alice", hosts=["gateway.example.org"])
    introduction = world.issuer.sign(cert.certificate_pem(mallory.certificate), Role.USER, "mallory")
    made = accept(mallory.directory, json.dumps(introduction))
    assert (made.peer.role, made.peer.user) == (Role.USER, "mallory")
    assert "gateway" not in str(made.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    usage = made.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert x509.oid.ExtendedKeyUsageOID.SERVER_AUTH not in usage


def test_introductions_that_do_not_fit(world: World) -> None:
    alice, bob = world.person("alice"), world.person("bob")
    good = world.issuer.sign(cert.certificate_pem(alice.certificate), Role.USER, "alice")
    other = create_issuer(world.path / "other")
    with pytest.raises(IdentityError, match="another key"):
        accept(bob.directory, json.dumps(good))
    with pytest.raises(IdentityError, match="not signed"):
        accept(alice.directory, json.dumps(good | {"ca_cert": cert.certificate_to_base64(other.authority)}))
    services = json.dumps(good | {"services": ["https://h"]})
    for text in ("", "[]", "{}", services, '{"signed_cert": 1, "ca_cert": 2}', "null"):
        with pytest.raises(IdentityError, match=r"no introduction|not a certificate"):
            accept(alice.directory, text)
    with pytest.raises(IdentityError, match="alias"):
        accept(alice.directory, json.dumps(good | {"services": {"../x": "https://h"}}))


def test_a_signers_name_leads_nowhere(world: World) -> None:
    alice = world.person("alice")
    evil = create_issuer(world.path / "evil", name="../../x")
    introduction = evil.sign(cert.certificate_pem(alice.certificate), Role.USER, "alice")
    with pytest.raises(IdentityError, match="name of a file"):
        accept(alice.directory, json.dumps(introduction))


def test_the_private_keys_of_the_issuer_are_nowhere_else(world: World) -> None:
    from lcls_dask.security import IssuerKeys

    world.person("alice")
    gateway = world.person("lcls", Role.GATEWAY)
    secrets = {(world.issuer.directory / name).read_bytes() for name in ("CA.key", "biscuit.key", "id.key")}
    bodies = {secret.splitlines()[1] for secret in secrets}
    raw = bytes(world.issuer._token_key.to_bytes())
    elsewhere = [
        path for path in world.path.rglob("*") if path.is_file() and world.issuer.directory not in path.parents
    ]
    assert len(elsewhere) > 10
    for path in elsewhere:
        content = path.read_bytes()
        assert not any(body in content for body in bodies), path
        assert raw not in content
        assert raw.hex().encode() not in content
    # what a gateway gets is enough to verify, and it has no key to sign with
    keys = gateway.issuer_keys()
    assert isinstance(keys, IssuerKeys)
    import gc

    assert not any(isinstance(part, type(world.issuer._token_key)) for part in gc.get_referents(keys, keys._keys))


def test_certified_reads_ours_and_introduces(world: World) -> None:
    """certified loads our directory, signs our certificate with its own authority, and we keep that."""
    alice = world.person("alice")
    theirs = certified.Certified(alice.directory)
    assert theirs.identity().certificate == cert.load_certificate((alice.directory / "id.crt").read_bytes())
    assert theirs.signer().certificate.subject == append_pseudonym(
        theirs.identity().certificate.subject, "Signing Certificate"
    )
    signer_name = cert.rfc4514(world.issuer.authority.subject)
    assert theirs.get_chain_from([signer_name])[0] == alice.certificate_file.read_bytes()

    other = world.path / "certified"
    run_certified("init", "Tess Tester", "--email", "tess@example.org", "--config", other)
    introduction = run_certified("introduce", alice.directory / "id.crt", "--config", other)
    made = accept(alice.directory, introduction)
    assert (made.peer.role, made.peer.user) == (Role.USER, "alice")
    assert made.certificate_file.stem == "P=Signing Certificate,CN=Tess Tester"
    # both introductions are there now, and the one asked for is taken
    assert load_identity(alice.directory, signer_name).certificate == alice.certificate


def test_we_read_certifieds_and_introduce(world: World) -> None:
    """A directory that certified has made is signed by our issuer, by certified's own add-intro, and read by us."""
    base = world.path / "tess"
    name = person_name("Tess Tester", uname="tess")
    made = certified.Certified.new(name, SAN(uris=uris_for(Role.USER, "tess")), base)
    ours = load_identity(base)
    assert ours.peer.user == "tess"
    assert [file.name for file, _ in list_certificates(base)] == ["id.crt", "CA.crt", "self.crt", "self.crt"]
    introduction = world.issuer.sign(
        made.identity().cert_pem.bytes(), Role.USER, "tess", services={"gateway": "https://gateway.example.org:4433"}
    )
    file = world.path / "intro.json"
    file.write_text(json.dumps(introduction))
    run_certified("add-intro", file, "--config", base)
    signed = load_identity(base)
    assert signed.certificate.issuer == world.issuer.authority.subject
    service = known_services(base)["gateway"]
    assert service.certificate == world.issuer.authority
    assert service.signers == (cert.rfc4514(world.issuer.authority.subject),)
    # and the other way: services that we have written, certified finds
    alice = world.person("alice")
    accept(alice.directory, json.dumps(world.issuer.sign(
        cert.certificate_pem(alice.certificate), Role.USER, "alice", services={"gateway": "https://gateway.example.org"}
    )))  # fmt: skip
    found = certified.Certified(alice.directory).lookup_server("gateway")
    assert found is not None
    assert found.url == "https://gateway.example.org"


def test_our_own_authority_signs_a_certified_certificate(world: World) -> None:
    base = world.path / "tess"
    made = certified.Certified.new(person_name("Tess"), SAN(uris=uris_for(Role.WORKER, "tess")), base)
    alice = world.person("alice")
    introduction = introduce(alice.directory, made.identity().cert_pem.bytes())
    made.add_identity(
        cert.certificate_from_base64(introduction["signed_cert"]), cert.certificate_from_base64(introduction["ca_cert"])
    )
    assert load_identity(base).peer.role is Role.WORKER
    nameless = certified.Certified.new(person_name("No Role"), SAN(emails=["a@example.org"]), world.path / "nameless")
    with pytest.raises(IdentityError, match="0 roles"):
        introduce(alice.directory, nameless.identity().cert_pem.bytes())


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes | None, bytes | None]:
    """Certificates that the server and the client see, over real sockets."""
    seen: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.settimeout(10)
            try:
                with server.wrap_socket(connection, server_side=True) as tls:
                    seen.append(tls.getpeercert(binary_form=True))
                    tls.sendall(b"x")
            except (ssl.SSLError, OSError) as error:
                seen.append(error)
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as connection,
                client.wrap_socket(connection, server_hostname="localhost") as tls,
            ):
                their = tls.getpeercert(binary_form=True)
                assert tls.recv(1) == b"x"
        finally:
            thread.join()
    (mine,) = seen
    assert isinstance(mine, bytes)
    return mine, their


def server_identity(world: World, role: Role = Role.GATEWAY) -> Identity:
    base = world.path / f"server-{role}"
    made = create_identity(base, role, "lcls", hosts=["localhost"])
    introduction = world.issuer.sign(cert.certificate_pem(made.certificate), role, "lcls", hosts=["localhost"])
    return accept(base, json.dumps(introduction), trust=True)


@pytest.mark.parametrize("key_type", ["ed25519", "secp256r1"])
def test_mutual_tls(world: World, key_type: str) -> None:
    gateway, alice = server_identity(world), world.person("alice", key_type=key_type)
    mine, their = handshake(server_context(gateway), client_context(alice))
    assert mine is not None
    assert peer_of(mine) == alice.peer
    assert check_role(their, Role.GATEWAY).user == "lcls"


def test_certified_and_we_over_tls(world: World) -> None:
    """certified's own contexts, both sides in turn, with what was introduced."""
    gateway, alice = server_identity(world), world.person("alice")
    theirs = certified.Certified(alice.directory)
    accept(alice.directory, json.dumps(world.issuer.sign(
        cert.certificate_pem(alice.certificate), Role.USER, "alice", services={"localhost": "https://localhost"}
    )))  # fmt: skip
    mine, _ = handshake(server_context(gateway), theirs.ssl_context(True, theirs.lookup_server("localhost")))
    assert mine is not None
    assert peer_of(mine).user == "alice"


def test_an_introduction_of_certified_is_good_for_tls(world: World) -> None:
    """Our strict contexts take the certificates that certified signs, where its authority is trusted."""
    gateway, alice = server_identity(world), world.person("alice")
    other = world.path / "certified"
    run_certified("init", "Tess Tester", "--email", "tess@example.org", "--config", other)
    alice = accept(alice.directory, run_certified("introduce", alice.directory / "id.crt", "--config", other))
    theirs = certified.Certified(other).signer().certificate
    assert alice.certificate.issuer == theirs.subject
    mine, _ = handshake(server_context(gateway, [theirs]), client_context(alice))
    assert mine is not None
    assert peer_of(mine).user == "alice"


def refused(world: World, make_client: Callable[[], ssl.SSLContext]) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(server_context(server_identity(world)), make_client())


def test_another_authority_is_refused(world: World) -> None:
    other = create_issuer(world.path / "other")
    alice = create_identity(world.path / "a2", Role.USER, "alice")
    alice = accept(alice.directory, json.dumps(other.sign(cert.certificate_pem(alice.certificate), Role.USER, "alice")))
    refused(world, lambda: client_context(alice, [world.issuer.authority]))


def test_her_own_authority_is_refused(world: World) -> None:
    alice = create_identity(world.path / "a2", Role.USER, "alice")
    refused(world, lambda: client_context(alice, [world.issuer.authority]))


def test_no_certificate_is_refused(world: World) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=cert.certificate_pem(world.issuer.authority).decode())
    refused(world, lambda: context)


def test_an_expired_certificate_is_refused(world: World) -> None:
    alice = create_identity(world.path / "a2", Role.USER, "alice")
    pem = cert.certificate_pem(alice.certificate)
    ended = world.issuer.sign(pem, Role.USER, "alice", lifetime=timedelta(seconds=-1))
    alice = accept(alice.directory, json.dumps(ended), trust=True)
    refused(world, lambda: client_context(alice))


def test_a_users_certificate_serves_nobody(world: World) -> None:
    """No host name and no usage as a server: nobody can pose as a gateway with it."""
    alice, bob = world.person("alice"), world.person("bob")
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(server_context(bob), client_context(alice))


def test_a_worker_is_no_gateway(world: World) -> None:
    worker, alice = server_identity(world, Role.WORKER), world.person("alice")
    _, their = handshake(server_context(worker), client_context(alice))
    with pytest.raises(IdentityError, match="expected was: gateway"):
        check_role(their, Role.GATEWAY)
    with pytest.raises(IdentityError, match="no certificate"):
        check_role(None, Role.GATEWAY)


def test_tls_before_1_2_is_refused(world: World) -> None:
    context = client_context(world.person("alice"))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for name, version in (("minimum_version", ssl.TLSVersion.TLSv1), ("maximum_version", ssl.TLSVersion.TLSv1_1)):
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            setattr(context, name, version)
    refused(world, lambda: context)


def test_the_own_authority_is_not_trusted_by_a_server(world: World) -> None:
    gateway = server_identity(world)
    (gateway.directory / "known_clients" / "self.crt").write_bytes((gateway.directory / "CA.crt").read_bytes())
    assert trusted(gateway.directory) == [world.issuer.authority]
    bare = create_identity(world.path / "bare", Role.GATEWAY, "lcls")
    with pytest.raises(IdentityError, match="trusts no authority"):
        server_context(bare)
    with pytest.raises(IdentityError, match="only an authority"):
        trust_authority(bare.directory, world.person("alice").certificate)


def test_rotation(world: World) -> None:
    alice = world.person("alice")
    old_key = alice.key_file.read_bytes()
    made = rotate_identity(alice.directory, "secp256r1")
    assert made.key_file.read_bytes() != old_key
    assert made.key_file.stat().st_mode & 0o777 == 0o600
    assert (made.peer.role, made.peer.user) == (alice.peer.role, alice.peer.user)
    assert made.certificate_file.name == "id.crt"
    introduction = world.issuer.sign(cert.certificate_pem(made.certificate), Role.USER, "alice")
    assert accept(alice.directory, json.dumps(introduction)).peer.thumbprint != alice.peer.thumbprint


@pytest.mark.parametrize("introduced", [True, False])
def test_a_rotation_that_was_interrupted_is_done_again(world: World, tmp_path: Path, introduced: bool) -> None:
    """Killed between any two of the files that it writes, it leaves an identity, or one that it can mend."""
    alice = world.person("alice") if introduced else create_identity(tmp_path / "alice", Role.USER, "alice")
    before = {path: path.read_bytes() for path in alice.directory.rglob("*") if path.is_file()}
    rotate_identity(alice.directory)
    after = {path: path.read_bytes() for path in alice.directory.rglob("*") if path.is_file()}
    changed = [path for path in before if before[path] != after.get(path)]
    assert alice.key_file in changed
    for mixed in itertools.product([before, after], repeat=len(changed)):
        for path, content in zip(changed, mixed, strict=True):
            path.unlink(missing_ok=True)
            if path in content:
                path.touch(0o600)
                path.write_bytes(content[path])
        assert rotate_identity(alice.directory).peer.user == "alice"


def test_key_and_certificate_that_do_not_fit(world: World) -> None:
    alice, bob = world.person("alice"), world.person("bob")
    alice.key_file.write_bytes(bob.key_file.read_bytes())
    with pytest.raises(IdentityError, match="is not for the key"):
        load_identity(alice.directory)


def test_the_directory_of_a_member_of_an_organisation(world: World) -> None:
    """certified set-org leaves no authority of one's own; such a directory is read too."""
    alice = world.person("alice")
    file = world.path / "intro.json"
    file.write_text(json.dumps(world.issuer.sign(cert.certificate_pem(alice.certificate), Role.USER, "alice")))
    run_certified("set-org", file, "--overwrite", "--config", alice.directory)
    assert not (alice.directory / "CA.key").exists()
    made = load_identity(alice.directory)
    assert made.certificate.issuer == world.issuer.authority.subject
    assert world.issuer.authority in trusted(alice.directory, "known_servers")


def test_asyncio_servers_take_the_context(world: World) -> None:
    gateway, alice = server_identity(world), world.person("alice")

    async def talk() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context(gateway))
        port = server.sockets[0].getsockname()[1]
        context = client_context(alice)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        writer.write(b"hello")
        told = await reader.readexactly(5)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return told

    assert asyncio.run(talk()) == b"hello"
