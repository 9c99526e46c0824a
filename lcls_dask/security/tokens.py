"""Tokens, written: signed by the issuer, and narrowed by whoever holds one."""

from collections.abc import Iterable
from datetime import UTC, datetime

from biscuit_auth import BiscuitBuilder, BlockBuilder, KeyPair, PrivateKey

from .access import Operation
from .capability import ANY_DETECTOR, FIRST_RUN, LAST_RUN, MAX_RIGHTS, Right, pattern_of, read
from .issuer_keys import MAX_TOKEN_LENGTH, IssuerKeys, TokenError, key_identifier


def issue(key: PrivateKey, user: str, holder: str, rights: Iterable[Right], expires: float) -> str:
    """Sign a token.

    Parameters
    ----------
    key : biscuit_auth.PrivateKey
        Of the issuer.
    user : str
    holder : str
        SHA-256 of the certificate that has to present it, hexadecimal.
    rights : iterable of Right
    expires : float
        Seconds since the epoch.

    Returns
    -------
    str

    Raises
    ------
    TokenError
        It would allow nothing, or be too long for a request.
    """
    granted = list(rights)
    if not 0 < len(granted) <= MAX_RIGHTS:
        raise TokenError(f"a token for {len(granted)} experiments: name between 1 and {MAX_RIGHTS}")
    builder = BiscuitBuilder(
        "user({user}); holder({holder}); expires({expires});"
        "check if peer({holder}); check if client({user}); check if time($t), $t < {expires};",
        {"user": user, "holder": holder, "expires": _date(expires)},
    )
    for right in granted:
        values = {
            "experiment": right.experiment,
            "first": right.first,
            "last": right.last,
            "pattern": pattern_of(right.detectors),
        }
        for operation in sorted(right.operations):
            code = "right({experiment}, {operation}, {first}, {last}, {pattern});"
            builder.add_code(code, values | {"operation": str(operation)})
    builder.set_root_key_id(key_identifier(KeyPair.from_private_key(key).public_key))
    token: str = builder.build(key).to_base64()
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenError(f"the token has {len(token)} characters, at most {MAX_TOKEN_LENGTH}: name fewer experiments")
    return token


def attenuate(
    token: str,
    keys: IssuerKeys,
    *,
    experiments: Iterable[str] = (),
    runs: tuple[int, int] | None = None,
    detectors: str | None = None,
    operations: Iterable[Operation] = (),
    expires: float | None = None,
) -> str:
    """Narrow a token, offline and without any private key; what is not given stays as it is.

    Parameters
    ----------
    token : str
    keys : IssuerKeys
    experiments : iterable of str
    runs : tuple of int, optional
        First and last, both included.
    detectors : str, optional
        Glob.
    operations : iterable of Operation
    expires : float, optional
        Seconds since the epoch. Later than the token's own expiry changes nothing.

    Returns
    -------
    str

    Raises
    ------
    TokenError
        The token is not good, nothing was asked for, or a part of it is malformed.
    """
    names, allowed = list(experiments), [Operation(operation) for operation in operations]
    first, last = runs or (FIRST_RUN, LAST_RUN)
    for name in names or ["any"]:
        Right(name, frozenset(allowed or Operation), first, last, detectors or ANY_DETECTOR)  # is it well-formed?
    block = BlockBuilder("")
    if names:
        block.add_code("check if " + " or ".join(f'experiment("{name}")' for name in names) + ";")
    if runs is not None:
        code = "check if run($r), $r >= {first}, $r <= {last} or whole_experiment(true);"
        block.add_code(code, {"first": first, "last": last})
    if detectors is not None:
        code = "check if detector($d), $d.matches({pattern}) or metadata(true);"
        block.add_code(code, {"pattern": pattern_of(detectors)})
    if allowed:
        block.add_code("check if " + " or ".join(f'operation("{operation}")' for operation in allowed) + ";")
    if expires is not None:
        block.add_code("check if time($t), $t < {expires};", {"expires": _date(expires)})
    if not (names or allowed or runs is not None or detectors is not None or expires is not None):
        raise TokenError("nothing to narrow: give experiments, runs, detectors, operations or an expiry")
    narrowed: str = keys.verify(token).append(block).to_base64()
    read(keys.verify(narrowed))
    return narrowed


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
