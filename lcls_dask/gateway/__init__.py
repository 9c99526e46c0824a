"""The gateway: runs served over mutual TLS, each read authorised and audited."""

from .limits import Limits
from .settings import Settings, Timeouts, state_directory

__all__ = ["Limits", "Settings", "Timeouts", "state_directory"]
