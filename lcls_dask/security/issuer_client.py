"""Asking an issuer's service for a token or a new certificate, over mutual TLS."""

import http.client
import json
import ssl
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from ..errors import AccessError, IdentityError, UnreachableError
from . import certificates as cert
from .capability import Right
from .files import read_private
from .identity import Identity
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
    wish: dict[str, Any] = {"minutes": minutes}
    if rights is not None:
        wish["rights"] = [
            {
                "experiment": right.experiment,
                "operations": sorted(right.operations),
                "runs": [right.first, right.last],
                "detectors": right.detectors,
            }
            for right in rights
        ]
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


def _post(
    identity: Identity, url: str, path: str, body: bytes, context: ssl.SSLContext | None = None
) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise IdentityError(f"{url[:120]!r} is no address of an issuer: write https://host:port")
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port or 443, timeout=_TIMEOUT, context=context or client_context(identity)
    )
    connection.auto_open = 0  # nor on a connection that it would make anew by itself
    end = time.monotonic() + _TIMEOUT
    try:
        connection.connect()
        # before anything is sent: a gateway or worker with that host name is no issuer
        check_role(connection.sock.getpeercert(binary_form=True), Role.ISSUER)
        while True:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            content = dict(json.loads(answer.read(1 << 20)))
            wait = float(answer.headers.get("Retry-After", 1)) if answer.status == 429 else None
            if wait is None or time.monotonic() + wait > end:
                break
            time.sleep(wait)
    except ssl.SSLCertVerificationError as error:
        raise IdentityError(f"{url}: {untrusted(error)}") from error
    except (ValueError, TypeError, http.client.HTTPException) as error:
        raise IdentityError(f"{url} does not answer as an issuer ({type(error).__name__})") from None
    finally:
        connection.close()
    if answer.status == 403:
        raise AccessError(f"{url}: {content.get('error')}")
    if answer.status == 429:
        raise UnreachableError(f"{url}: {content.get('error')}")
    if answer.status != 200:
        raise IdentityError(f"{url} refuses ({answer.status}): {content.get('error')}")
    return content
