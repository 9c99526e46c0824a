"""``lcls-dask issue``: the issuer of certificates and tokens."""

from datetime import timedelta

import click

from .identity import FILE, ROLES, content_of, pairs
from .output import print_json


@click.group()
def issue() -> None:
    """Sign certificates and tokens; the keys for that are in one directory and nowhere else.

    \b
    Examples:
      lcls-dask issue init issuer --host issuer.example.org
      lcls-dask issue sign issuer alice.crt --user alice > alice.json
      lcls-dask issue serve issuer --policy policy.toml --revocations revoked.txt --port 4433
    """


@issue.command()
@click.argument("directory", metavar="DIR")
@click.option("--name", default="LCLS issuer", show_default=True, help="Common name.")
@click.option("--host", "hosts", multiple=True, help="Where its service will be reached; may be given again.")
@click.option("--key-type", type=click.Choice(["ed25519", "secp256r1"]), default="ed25519", show_default=True)
def init(directory: str, name: str, hosts: tuple[str, ...], key_type: str) -> None:
    """Make an issuer in DIR."""
    from ..security.issuer import create_issuer

    made = create_issuer(directory, name, hosts, key_type)
    click.echo(f"{made.directory}: give CA.crt and biscuit.pub to gateways; keep all else there")


@issue.command()
@click.argument("directory", metavar="DIR")
@click.argument("subject", type=FILE)
@click.option("--user", required=True, help="Whom you have found SUBJECT to belong to.")
@click.option("--role", type=click.Choice(ROLES), default="user", show_default=True)
@click.option("--cluster", help="Dask cluster that it belongs to.")
@click.option("--host", "hosts", multiple=True, help="Host name or address of a server; may be given again.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Lifetime; by the role by default.")
@click.option("--service", "services", multiple=True, metavar="ALIAS=URL", help="A service to know; again for more.")
def sign(
    directory: str,
    subject: str,
    user: str,
    role: str,
    cluster: str | None,
    hosts: tuple[str, ...],
    hours: float | None,
    services: tuple[str, ...],
) -> None:
    """Sign SUBJECT, a request or a certificate ("-": standard input), offline.

    Only its key and name are used: what it says of role, user and hosts is not. Prints an introduction as JSON, for
    lcls-dask identity accept or certified add-intro.
    """
    from ..security import Role
    from ..security.issuer import open_issuer

    print_json(
        open_issuer(directory).sign(
            content_of(subject),
            Role(role),
            user,
            cluster=cluster,
            hosts=hosts,
            lifetime=None if hours is None else timedelta(hours=hours),
            services=pairs(services),
        )
    )


@issue.command()
@click.argument("directory", metavar="DIR")
@click.option("--policy", required=True, type=click.Path(exists=True), help="Who belongs to which experiment.")
@click.option("--revocations", required=True, type=click.Path(), help="List of what is revoked; made if missing.")
@click.option("--address", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=4433, show_default=True, help="0: any that is free.")
@click.option(
    "--requests",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="Of one user in a second; sixty times as many at once.",
)
def serve(directory: str, policy: str, revocations: str, address: str, port: int, requests: float) -> None:
    """Renew certificates and give tokens over mutual TLS, until SIGTERM."""
    import asyncio

    from ..gateway.logs import log_as_json
    from ..security import FileRevocations, PolicyFile, create_revocations
    from ..security.issuer import open_issuer
    from ..security.issuer_service import make_server
    from ..security.issuer_service import serve as serve_issuer

    log_as_json()
    create_revocations(revocations)
    # looked at for each request: what is revoked must not be renewed any more
    parts = open_issuer(directory), PolicyFile(policy), FileRevocations(revocations, interval=0)

    async def run() -> None:
        server = make_server(*parts, requests)
        await serve_issuer(server, address, port, lambda bound: click.echo(f"https://{address}:{bound}"))

    asyncio.run(run())
