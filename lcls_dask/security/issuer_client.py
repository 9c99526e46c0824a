"""Asking an issuer's service for tokens, new certificates and clusters, over mutual TLS."""

import fcntl
import http.client
import json
import os
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ..errors import AccessError, IdentityError, UnreachableError
from . import certificates as cert
from .capability import Right
from .files import read_private
from .identity import Identity, load_identity
from .introductions import accept
from .issuer import DEFAULT_MINUTES
from .peer import Role
from .tls import check_role, client_context, untrusted

_TIMEOUT = 30.0


def fetch_token(
    identity: Identity,
    url: str,
    rights: Iterable[Right] | None = None,
    minutes: float = DEFAULT_MINUTES,
    context: ssl.SSLContext | None = None,
) -> str:
    """Ask for a token that is bound to an identity's certificate.

    Parameters
    ----------
    identity : Identity
    url : str
        Of the issuer: ``https://host:port``.
    rights : iterable of Right, optional
        All that policy grants, where it is not given.
    minutes : float
    context : ssl.SSLContext, optional
        Of the connections on which the token will be presented. Another process may have renewed the certificate in
        the identity's directory since; a token that is bound to that one is no good on those.

    Returns
    -------
    str

    Raises
    ------
    AccessError
        It is not granted.
    IdentityError
        The issuer does not accept the certificate, or is none.
    OSError
        The issuer cannot be reached.
    """
    wish = {"minutes": minutes} | _rights(rights)
    return str(_post(identity, url, "/v1/tokens", json.dumps(wish).encode(), context)["token"])


def renew(identity: Identity, url: str) -> Identity:
    """Get a new certificate for the same key and names, and keep it in the identity's directory.

    Tokens are bound to a certificate: ask for new ones afterwards.

    Parameters
    ----------
    identity : Identity
    url : str
        Of the issuer: ``https://host:port``.

    Returns
    -------
    Identity
        With the new certificate.

    Raises
    ------
    IdentityError
        The issuer does not accept the certificate, or is none.
    OSError
        The issuer cannot be reached.
    """
    key = cert.load_key(read_private(identity.key_file))
    body = cert.certificate_pem(cert.request(key, identity.certificate))
    return accept(identity.directory, json.dumps(_post(identity, url, "/v1/certificates", body)))


def renew_if_due(identity: Identity, url: str) -> Identity:
    """Renew when half of the certificate's time has gone, unless another process has done it.

    Parameters
    ----------
    identity : Identity
    url : str
        Of the issuer: ``https://host:port``.

    Returns
    -------
    Identity
        What the directory holds now.

    Raises
    ------
    IdentityError
        As `renew`.
    OSError
        As `renew`.
    """
    # a nanny and its workers share one directory: only one of them shall ask
    lock = os.open(identity.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        current = load_identity(identity.directory)
        return current if time.time() < current.peer.half_time else renew(current, url)
    finally:
        os.close(lock)


def open_cluster(
    identity: Identity,
    url: str,
    cluster: str,
    requests: Mapping[str, bytes],
    rights: Iterable[Right] | None = None,
    hours: float = 12.0,
    worker_hours: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Delegate to a new Dask cluster.

    Parameters
    ----------
    identity : Identity
        Of the user.
    url : str
        Of the issuer: ``https://host:port``.
    cluster : str
        A name that this user has given to no cluster before.
    requests : dict of str to bytes
        For `scheduler` and `manager`, a certificate request (PEM).
    rights : iterable of Right, optional
        What its workers may read at most; all that policy grants, where it is not given.
    hours : float
        For which the certificates of its scheduler and manager are good; 12 at most.
    worker_hours : float, optional
        The same of its workers, such as their walltime; `hours` where it is not given.

    Returns
    -------
    dict
        For each of the two its introduction, for `lcls_dask.security.introductions.accept`.

    Raises
    ------
    AccessError
        It is not granted.
    IdentityError
        The issuer does not accept the certificate, or is none.
    OSError
        The issuer cannot be reached.
    """
    wish = {
        "cluster": cluster,
        "requests": {role: pem.decode() for role, pem in requests.items()},
        "hours": hours,
        "worker_hours": hours if worker_hours is None else worker_hours,
    }
    return _post(identity, url, "/v1/clusters", json.dumps(wish | _rights(rights)).encode())


def announce_secrets(manager: Identity, url: str, hashes: Iterable[str], minutes: float) -> float:
    """Announce enrolment secrets of a cluster.

    Parameters
    ----------
    manager : Identity
        Of the cluster.
    url : str
        Of the issuer: ``https://host:port``.
    hashes : iterable of str
        SHA-256 of each secret, hexadecimal.
    minutes : float
        For which they are good.

    Returns
    -------
    float
        When their time is over, seconds since the epoch.

    Raises
    ------
    AccessError
        It is no manager, or the cluster is closed.
    OSError
        The issuer cannot be reached.
    """
    body = json.dumps({"hashes": list(hashes), "minutes": minutes}).encode()
    return float(_post(manager, url, "/v1/secrets", body)["deadline"])


def close_cluster(identity: Identity, url: str, cluster: str) -> None:
    """End a cluster: nobody joins it any more, and its certificates and tokens are not renewed.

    Parameters
    ----------
    identity : Identity
        Of its user or its manager.
    url : str
        Of the issuer: ``https://host:port``.
    cluster : str

    Raises
    ------
    AccessError
        There is no such cluster of this user.
    OSError
        The issuer cannot be reached.
    """
    with connected(url, client_context(identity)) as connection:
        ask(connection, url, "DELETE", f"/v1/clusters/{cluster}")


@contextmanager
def connected(url: str, context: ssl.SSLContext) -> Iterator[http.client.HTTPSConnection]:
    """Connect to an issuer, and to nobody else.

    Parameters
    ----------
    url : str
    context : ssl.SSLContext

    Yields
    ------
    http.client.HTTPSConnection
        On which nothing was sent yet.

    Raises
    ------
    IdentityError
        Who answers is no issuer.
    OSError
        Nobody answers.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise IdentityError(f"{url[:120]!r} is no address of an issuer: write https://host:port")
    connection = http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=_TIMEOUT, context=context)
    try:
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise IdentityError(f"{url}: {untrusted(error)}") from error
        # before anything is sent: a gateway or worker with that host name is no issuer
        check_role(connection.sock.getpeercert(binary_form=True), Role.ISSUER)
        connection.auto_open = 0  # nor on a connection that it would make anew by itself
        yield connection
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPSConnection, url: str, method: str, path: str, body: bytes | None = None
) -> dict[str, Any]:
    """Send a request and read the answer; who has asked too often waits for as long as the issuer says.

    Parameters
    ----------
    connection : http.client.HTTPSConnection
    url : str
        Of the issuer, for messages.
    method, path : str
    body : bytes, optional

    Returns
    -------
    dict

    Raises
    ------
    AccessError
        It is not granted.
    IdentityError
        It is refused, or the answer is not an issuer's.
    UnreachableError
        It was asked too often, and still is after half a minute.
    """
    end = time.monotonic() + _TIMEOUT
    try:
        while True:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = dict(json.loads(answer.read(1 << 20) or b"{}"))
            wait = float(answer.headers.get("Retry-After", 1)) if answer.status == 429 else None
            if wait is None or time.monotonic() + wait > end:
                break
            time.sleep(wait)
    except (ValueError, TypeError, http.client.HTTPException) as error:
        raise IdentityError(f"{url} does not answer as an issuer ({type(error).__name__})") from None
    if answer.status == 403:
        raise AccessError(f"{url}: {content.get('error')}")
    if answer.status == 429:
        raise UnreachableError(f"{url}: {content.get('error')}")
    if answer.status not in (200, 204):
        raise IdentityError(f"{url} refuses ({answer.status}): {content.get('error')}")
    return content


def is_refusal(error: BaseException) -> bool:
    """Whether an issuer has refused, so that asking again is of no use.

    Not where its certificate could not be trusted: a clock may be wrong, or that certificate have ended.

    Parameters
    ----------
    error : BaseException
        Of a function of this module.

    Returns
    -------
    bool
    """
    return isinstance(error, AccessError) and not isinstance(error.__cause__, ssl.SSLError)


def _post(
    identity: Identity, url: str, path: str, body: bytes, context: ssl.SSLContext | None = None
) -> dict[str, Any]:
    with connected(url, context or client_context(identity)) as connection:
        return ask(connection, url, "POST", path, body)


def _rights(rights: Iterable[Right] | None) -> dict[str, Any]:
    if rights is None:
        return {}
    return {
        "rights": [
            {
                "experiment": right.experiment,
                "operations": sorted(right.operations),
                "runs": [right.first, right.last],
                "detectors": right.detectors,
            }
            for right in rights
        ]
    }
