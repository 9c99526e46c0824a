"""``lcls-dask serve``: the gateway."""

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)
_DIRECTORY = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True)


@click.command()
@click.option(
    "--root", type=_DIRECTORY, required=True, help="Directory of experiments: <experiment> or <hutch>/<experiment>."
)
@click.option("--identity", type=_DIRECTORY, required=True, help="The gateway's identity, of lcls-dask identity.")
@click.option("--trust", type=_FILE, multiple=True, help="Certificate of an authority whose clients may connect.")
@click.option("--issuer", type=_FILE, multiple=True, help="Public key of an issuer of capabilities.")
@click.option("--policy", type=_FILE, required=True, help="Who belongs to which experiment.")
@click.option("--revocations", type=_FILE, required=True, help="List of what is no longer good; may be empty.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8443, show_default=True, help="0: any that is free.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="All on the same port.")
@click.option("--state", metavar="URL", help="State database: sqlite:///FILE or postgresql+psycopg://HOST/NAME.")
@click.option("--audit", type=_PATH, help="Directory of the audit's files.")
@click.option("--requests", type=click.FloatRange(1), help="Requests a second of one user, over all processes.")
@click.option("--inflight", type=click.FloatRange(1), help="MiB on their way to one user.")
@click.option("--connections", type=click.IntRange(1), help="Connections of one user.")
@click.option("--drain", type=click.FloatRange(0), help="Seconds that requests may take to end after SIGTERM.")
def serve(
    root: Path,
    identity: Path,
    trust: tuple[Path, ...],
    issuer: tuple[Path, ...],
    policy: Path,
    revocations: Path,
    host: str,
    port: int,
    processes: int,
    state: str | None,
    audit: Path | None,
    requests: float | None,
    inflight: float | None,
    connections: int | None,
    drain: float | None,
) -> None:
    """Serve the runs under a directory over mutual TLS, each read authorised and audited.

    Prints one line of JSON with its address once it accepts connections. SIGTERM lets requests end and stops it;
    SIGHUP opens all runs anew. Without --trust and --issuer, those hold that the identity knows.

    \b
    Example:
      lcls-dask serve --root /data --identity gateway --trust ca.crt --issuer issuer.pub --policy policy.toml \\
          --revocations revoked.txt
    """
    from ..gateway import Limits, Settings, Timeouts, state_directory
    from ..gateway.supervisor import announce_as_json
    from ..gateway.supervisor import serve as run

    usual, patience = Limits(), Timeouts()
    if audit is None or state is None:
        state_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = Settings(
        root=root.resolve(),
        identity=identity.resolve(),
        trust=tuple(path.resolve() for path in trust),
        issuers=tuple(path.resolve() for path in issuer),
        policy=policy.absolute(),
        revocations=revocations.absolute(),
        audit=(audit or state_directory() / "audit").absolute(),
        state=state or f"sqlite:///{state_directory() / 'gateway.db'}",
        host=host,
        port=port,
        processes=processes,
        limits=Limits(
            requests if requests is not None else usual.requests,
            int(inflight * (1 << 20)) if inflight is not None else usual.bytes,
            connections if connections is not None else usual.connections,
        ),
        timeouts=patience if drain is None else Timeouts(drain=drain),
    )
    run(settings, announce_as_json)
