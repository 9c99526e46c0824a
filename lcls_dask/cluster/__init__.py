"""Dask clusters of one user, closed to everybody else: on this machine, in a batch system, or running already."""

from .client import ClusterClient, connect

__all__ = ["ClusterClient", "connect"]
