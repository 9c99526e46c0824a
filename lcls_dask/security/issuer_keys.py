"""The public keys of issuers, and what of a token they prove; the one place where hostile bytes meet the library."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from biscuit_auth import Biscuit, PublicKey

from ..errors import IdentityError
from .files import check_directory, read_public

T = TypeVar("T")

#: What a request's header can carry, and what can be verified in a millisecond.
MAX_TOKEN_LENGTH: Final = 8192


class TokenError(IdentityError):
    """A token cannot be parsed, is not signed by a known issuer, or holds what it must not hold."""


class IssuerKeys:
    """Public keys of issuers, each under the identifier that its tokens carry.

    Parameters
    ----------
    pems : iterable of bytes
        Public keys, PEM.

    Raises
    ------
    IdentityError
        One is no Ed25519 public key.
    """

    def __init__(self, pems: Iterable[bytes]) -> None:
        self._keys = {key_identifier(key): key for key in map(_public_key, pems)}

    @classmethod
    def load(cls, *paths: str | Path) -> "IssuerKeys":
        """Read the keys from files; of a directory, those that end in ``.pub``.

        Raises
        ------
        IdentityError
            Others can write one, or it is none. That there are none at all is for the caller to judge.
        """
        files = []
        for path in map(Path, paths):
            if path.is_dir():
                check_directory(path)
                files += sorted(path.glob("*.pub"))
            else:
                files.append(path)
        return cls(read_public(file) for file in files)

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self, token: str) -> Biscuit:
        """Parse a token and check all its signatures.

        Parameters
        ----------
        token : str

        Returns
        -------
        biscuit_auth.Biscuit

        Raises
        ------
        TokenError
            Not signed by one of these keys, tampered with, or no token at all.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenError(f"the token has {len(token)} characters, at most {MAX_TOKEN_LENGTH} are accepted")
        return contained(lambda: Biscuit.from_base64(token, self._key))

    def _key(self, identifier: int | None = None) -> PublicKey:
        return self._keys[identifier]  # type: ignore[index]  # a token without one is of another issuer: KeyError

    def __repr__(self) -> str:
        return f"IssuerKeys({', '.join(f'{identifier:08x}' for identifier in self._keys)})"


def contained(call: Callable[[], T]) -> T:
    """Call the biscuit library; whatever it does with a hostile token becomes a `TokenError` without the token.

    Its Rust code can panic (it does for terms that it cannot turn into Python's), and a panic is no `Exception`: it
    would end the process.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:
        raise TokenError("the token is not signed by a known issuer, or is damaged: ask for a new one") from None


def key_identifier(key: PublicKey) -> int:
    """Number that tokens name a key by: the first four bytes of the SHA-256 of the public key."""
    return int.from_bytes(hashlib.sha256(bytes(key.to_bytes())).digest()[:4], "big")


def _public_key(pem: bytes) -> PublicKey:
    try:
        key = PublicKey.from_pem(pem.decode())  # type: ignore[attr-defined]
    except Exception:
        raise IdentityError("not an issuer's public key (PEM, Ed25519): take its biscuit.pub") from None
    if not repr(key).startswith("ed25519/"):
        # whoever holds a token could change an ECDSA signature, and with it the id that revokes the token
        raise IdentityError("an issuer's key for tokens must be Ed25519, so that they can be revoked")
    return key  # type: ignore[no-any-return]
