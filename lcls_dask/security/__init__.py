"""Identities, capabilities, policy and the decision; knows nothing of HTTP gateways or Dask."""

from .access import METADATA, UNAUTHENTICATED, Access, Decision, Operation, Reason
from .authoriser import Authoriser
from .capability import Capability, Right
from .identity import Identity, create_identity, find_identity, load_identity
from .issuer_keys import IssuerKeys, TokenError
from .peer import Peer, Role, peer_of
from .policy import Policy, PolicyFile
from .revocations import FileRevocations, Revocations, create_revocations, revoke
from .tls import check_role, client_context, reload_certificate, server_context
from .tokens import attenuate

__all__ = [
    "METADATA",
    "UNAUTHENTICATED",
    "Access",
    "Authoriser",
    "Capability",
    "Decision",
    "FileRevocations",
    "Identity",
    "IssuerKeys",
    "Operation",
    "Peer",
    "Policy",
    "PolicyFile",
    "Reason",
    "Revocations",
    "Right",
    "Role",
    "TokenError",
    "attenuate",
    "check_role",
    "client_context",
    "create_identity",
    "create_revocations",
    "find_identity",
    "load_identity",
    "peer_of",
    "reload_certificate",
    "revoke",
    "server_context",
]
