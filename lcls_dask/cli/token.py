"""``lcls-dask token``: capabilities, got, narrowed, looked at and revoked."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from .identity import FILE, content_of
from .output import as_json, print_json, print_table

OPERATIONS = ("list", "info", "read", "direct", "ingest", "request")
_token = click.argument("path", metavar="FILE", type=FILE)


def _narrowing(function: Any) -> Any:
    for decorate in (
        click.option("--operation", "operations", multiple=True, type=click.Choice(OPERATIONS), help="Again for more."),
        click.option("--detectors", metavar="GLOB", help="Such as 'hsd*'."),
        click.option("--runs", metavar="FIRST:LAST", help="Both included."),
        click.option("--experiment", "experiments", multiple=True, help="Exact name; again for more."),
    ):
        function = decorate(function)
    return function


@click.group()
def token() -> None:
    """Get, narrow, inspect and revoke capabilities.

    FILE holds a token ("-": standard input); tokens are never arguments, which every user of a machine could see.

    \b
    Examples:
      lcls-dask token issue --issuer https://issuer:4433 --experiment tmox42619 > token
      lcls-dask token attenuate token --runs 10:20 --operation read > narrow
      lcls-dask token inspect narrow
    """


@token.command()
@click.option("--issuer", required=True, metavar="URL|DIR", help="The issuer's service, or its directory (offline).")
@click.option("--identity", "directory", metavar="DIR", help="Who will present it; by default the user's own.")
@click.option("--for", "certificate", type=click.Path(exists=True), help="Offline: certificate that will present it.")
@click.option("--policy", type=click.Path(exists=True), help="Offline: grant no more than this policy does.")
@click.option("--minutes", type=float, default=10.0, show_default=True, help="60 at most.")
@_narrowing
def issue(
    issuer: str,
    directory: str | None,
    certificate: str | None,
    policy: str | None,
    minutes: float,
    experiments: tuple[str, ...],
    runs: str | None,
    detectors: str | None,
    operations: tuple[str, ...],
) -> None:
    """Print a token for the experiments that are named, or for all that are granted."""
    from ..security import Operation, PolicyFile, Right, load_identity
    from ..security.certificates import load_certificate
    from ..security.issuer import narrowed, open_issuer
    from ..security.issuer_client import fetch_token
    from ..security.peer import peer_of_certificate

    first, last = _runs(runs) or (0, 999_999)
    allowed = frozenset(map(Operation, operations)) or frozenset(Operation)
    rights = [Right(name, allowed, first, last, detectors or "*") for name in experiments] or None
    if rights is None and (runs or detectors or operations):
        raise click.UsageError("Give --experiment with --runs, --detectors or --operation.")
    if issuer.startswith("https:"):
        click.echo(fetch_token(load_identity(directory), issuer, rights, minutes))
        return
    holder = (
        peer_of_certificate(load_certificate(Path(certificate).read_bytes()))
        if certificate
        else load_identity(directory).peer
    )
    if policy is not None:
        rights = narrowed(PolicyFile(policy), holder.user, rights)
    if rights is None:
        raise click.UsageError("Without --policy give --experiment: there is nothing to take all that is granted from.")
    click.echo(open_issuer(issuer).token(holder, rights, minutes))


@token.command()
@_token
@click.option("--issuer-key", "keys", multiple=True, type=click.Path(exists=True), help="biscuit.pub of the issuer.")
@click.option("--identity", "directory", metavar="DIR", help="Identity that knows the issuer's key.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="From now.")
@_narrowing
def attenuate(
    path: str,
    keys: tuple[str, ...],
    directory: str | None,
    minutes: float | None,
    experiments: tuple[str, ...],
    runs: str | None,
    detectors: str | None,
    operations: tuple[str, ...],
) -> None:
    """Print a narrower token; needs no connection and no private key."""
    from ..security import IssuerKeys, Operation, attenuate, find_identity

    known = keys or (str(find_identity(directory) / "known_issuers"),)
    click.echo(
        attenuate(
            content_of(path).decode(errors="replace").strip(),
            IssuerKeys.load(*known),
            experiments=experiments,
            runs=_runs(runs),
            detectors=detectors,
            operations=map(Operation, operations),
            expires=None if minutes is None else time.time() + 60 * minutes,
        )
    )


@token.command()
@_token
@click.option(
    "--issuer-key", "keys", multiple=True, type=click.Path(exists=True), help="Check its signatures with this."
)
@as_json
def inspect(path: str, keys: tuple[str, ...], json_: bool) -> None:
    """Print what a token says; never the token."""
    from ..security import IssuerKeys
    from ..security.capability import read, read_unverified

    text = content_of(path).decode(errors="replace").strip()
    told = read(IssuerKeys.load(*keys).verify(text)) if keys else read_unverified(text)
    rows = {
        "signatures": "good" if keys else "not checked: give --issuer-key",
        "user": told.user,
        "holder": told.holder,
        "expires": datetime.fromtimestamp(told.expires, UTC).isoformat(),
        "state": "good" if time.time() < told.expires else "expired",
        "rights": [
            f"{right.experiment} runs {right.first}:{right.last} {right.detectors} {','.join(sorted(right.operations))}"
            for right in told.rights
        ],
        "narrowed": list(told.narrowed),
        "revocation_ids": list(told.revocation_ids),
    }
    if json_:
        print_json(rows)
        return
    lines = [(key, item) for key, value in rows.items() for item in (value if isinstance(value, list) else [value])]
    print_table(("what", "value"), lines)


@token.command()
@click.argument("what", metavar="FILE|TOKEN_ID")
@click.option("--revocations", "path", required=True, type=click.Path(), help="The list that gateways honour.")
@click.option("--whole", is_flag=True, help="Also what it was narrowed from, and so all that was narrowed from that.")
@click.option("--reason", default="revoked by hand", show_default=True)
def revoke(what: str, path: str, whole: bool, reason: str) -> None:
    """Revoke a token and all that were narrowed from it: a file that holds it, or its id from the audit."""
    from ..security import revoke
    from ..security.capability import read_unverified

    file = Path(what)
    ids = list(read_unverified(file.read_text().strip()).revocation_ids) if file.is_file() else [what]
    chosen = ids[:1] if whole else ids[-1:]
    revoke(path, chosen, reason)
    click.echo(chosen[0])


def _runs(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not first.isdigit() or not (last or first).isdigit():
        raise click.UsageError("Write --runs FIRST:LAST, such as 10:20, or one number.")
    return int(first), int(last or first)
