"""Runs behind a gateway: read over mutual TLS, or from the facility's own files where the gateway says so."""

from .catalogue import experiments, run_table
from .source import RemoteSource

__all__ = ["RemoteSource", "experiments", "run_table"]
