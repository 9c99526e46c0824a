"""``lcls-dask identity``: keys and certificates, in the layout of certified."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from .output import as_json, print_json, print_table

ROLES = ("user", "scheduler", "worker", "manager", "gateway", "issuer")
#: A file that is there, or "-" for standard input.
FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)
_directory = click.option("--identity", "directory", metavar="DIR", help="The identity; by default the user's own.")


@click.group()
def identity() -> None:
    """Make, sign, list, renew and revoke certificates.

    \b
    Examples:
      lcls-dask identity create --user alice
      lcls-dask identity accept alice.json --trust
      lcls-dask identity list
    """


@identity.command()
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--user", required=True, help="On whose behalf it acts.")
@click.option("--role", type=click.Choice(ROLES), default="user", show_default=True)
@click.option("--cluster", help="Dask cluster that it belongs to.")
@click.option("--name", help="Common name; user and role by default.")
@click.option("--host", "hosts", multiple=True, help="Host name or address of a server; may be given again.")
@click.option("--key-type", type=click.Choice(["ed25519", "secp256r1"]), default="ed25519", show_default=True)
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Lifetime; by the role by default.")
def create(
    directory: str | None,
    user: str,
    role: str,
    cluster: str | None,
    name: str | None,
    hosts: tuple[str, ...],
    key_type: str,
    hours: float | None,
) -> None:
    """Make an identity in DIR; nobody trusts it until an issuer has signed it."""
    from ..security import Role, create_identity, find_identity

    made = create_identity(
        find_identity(directory),
        Role(role),
        user,
        cluster=cluster,
        name=name,
        hosts=hosts,
        key_type=key_type,
        lifetime=_lifetime(hours),
    )
    click.echo(f"{made.directory}: let an issuer sign {made.certificate_file}")


@identity.command()
@click.argument("subject", type=FILE)
@_directory
@click.option("--role", type=click.Choice(ROLES), help="Role; with --user, in place of what SUBJECT says.")
@click.option("--user", help="User; with --role, in place of what SUBJECT says.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Lifetime; by the role by default.")
@click.option("--service", "services", multiple=True, metavar="ALIAS=URL", help="A service to know; again for more.")
def introduce(
    subject: str,
    directory: str | None,
    role: str | None,
    user: str | None,
    hours: float | None,
    services: tuple[str, ...],
) -> None:
    """Sign SUBJECT, a request or a certificate ("-": standard input), with this identity's own authority.

    Do so only for whom you know to hold its key. Prints the introduction as JSON.
    """
    from ..security import Role, find_identity
    from ..security.introductions import introduce

    if (role is None) != (user is None):
        raise click.UsageError("Give --role and --user together.")
    print_json(
        introduce(
            find_identity(directory),
            content_of(subject),
            role=None if role is None else Role(role),
            user=user,
            lifetime=_lifetime(hours),
            services=pairs(services),
        )
    )


@identity.command()
@click.argument("introduction", type=FILE)
@_directory
@click.option("--trust", is_flag=True, help="Also trust the signer: its servers, clients and tokens.")
def accept(introduction: str, directory: str | None, trust: bool) -> None:
    """Keep the certificate that an issuer, or somebody else, has signed for this identity."""
    from ..security.introductions import accept

    click.echo(str(accept(directory or _found(), content_of(introduction), trust).certificate_file))


@identity.command()
@click.argument("authority", type=FILE)
@_directory
def trust(authority: str, directory: str | None) -> None:
    """Trust servers and clients that AUTHORITY, a CA.crt, has signed."""
    from ..security.certificates import load_certificate
    from ..security.trust import trust_authority

    trust_authority(directory or _found(), load_certificate(content_of(authority)))


@identity.command("list")
@_directory
@as_json
def list_(directory: str | None, json_: bool) -> None:
    """List the certificates of an identity, and of those that it trusts."""
    from ..errors import IdentityError
    from ..security.certificates import rfc4514
    from ..security.identity import list_certificates
    from ..security.peer import is_authority, peer_of_certificate

    base, now, rows = Path(directory or _found()), datetime.now(UTC), []
    for file, certificate in list_certificates(base):
        role, user, cluster = "authority", None, None
        if not is_authority(certificate):
            try:
                peer = peer_of_certificate(certificate)
                role, user, cluster = str(peer.role), peer.user, peer.cluster
            except IdentityError as error:
                role = f"refused: {error}"
        until = certificate.not_valid_after_utc
        rows.append(
            {
                "file": str(file.relative_to(base)),
                "role": role,
                "user": user,
                "cluster": cluster,
                "signer": rfc4514(certificate.issuer),
                "serial": f"{certificate.serial_number:x}",
                "until": until.isoformat(),
                "state": "good" if now < until else "expired",
            }
        )
    if json_:
        print_json(rows)
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows], title=str(base))


@identity.command()
@_directory
@click.option("--key-type", type=click.Choice(["ed25519", "secp256r1"]), default="ed25519", show_default=True)
def rotate(directory: str | None, key_type: str) -> None:
    """Make a new key for the same names; introductions of the old key are removed."""
    from ..security.identity import rotate_identity

    made = rotate_identity(directory or _found(), key_type)
    click.echo(f"{made.directory}: let an issuer sign {made.certificate_file}, and revoke the old one")


@identity.command()
@_directory
@click.option("--issuer", "url", required=True, metavar="URL", help="Of lcls-dask issue serve: https://host:port.")
def renew(directory: str | None, url: str) -> None:
    """Get a new certificate for the same key from the issuer's service."""
    from ..security import load_identity
    from ..security.issuer_client import renew

    made = renew(load_identity(directory), url)
    click.echo(f"{made.certificate_file} is good until {made.certificate.not_valid_after_utc.isoformat()}")


@identity.command()
@click.argument("secrets", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("--into", metavar="DIR", help="For the identity; a new directory for temporary files by default.")
@click.option("--patience", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait.")
def enrol(secrets: str, into: str | None, patience: float) -> None:
    """Become a worker of the Dask cluster that keeps its one-time secrets in DIR: for job scripts.

    Prints the directory of the new identity.
    """
    import shutil
    import tempfile

    from ..security.enrolment import enrol

    target = Path(into or tempfile.mkdtemp(prefix="lcls-worker-"))
    try:
        click.echo(str(enrol(Path(secrets), target, patience).directory))
    except BaseException:
        if into is None:
            shutil.rmtree(target)
        raise


@identity.command()
@click.argument("what", metavar="CERTIFICATE|SERIAL")
@click.option("--revocations", "path", required=True, type=click.Path(), help="The list that gateways honour.")
@click.option(
    "--issuer", "issuer", type=click.Path(), help="Directory of the issuer: revoke what was renewed from it too."
)
@click.option("--reason", default="revoked by hand", show_default=True)
def revoke(what: str, path: str, issuer: str | None, reason: str) -> None:
    """Revoke a certificate: a file, or a serial number in hexadecimal."""
    from ..security import revoke
    from ..security.certificates import load_certificate
    from ..security.issuer import open_issuer

    file = Path(what)
    serial = f"{load_certificate(file.read_bytes()).serial_number:x}" if file.is_file() else what.lower().lstrip("0")
    serials = [serial]
    if issuer:
        serials = open_issuer(issuer).revoke(serial, path, reason)
    else:
        revoke(path, serials, reason)
    for number in serials:
        click.echo(number)


def content_of(path: str) -> bytes:
    """Read a file, or standard input."""
    with click.open_file(path, "rb") as file:
        return bytes(file.read())


def pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Take ``alias=url`` apart."""
    found = dict(text.partition("=")[::2] for text in texts)
    if not all(found.values()):
        raise click.UsageError("Write services as ALIAS=URL.")
    return found


def _lifetime(hours: float | None) -> timedelta | None:
    return None if hours is None else timedelta(hours=hours)


def _found() -> str:
    from ..security import find_identity

    return str(find_identity())
