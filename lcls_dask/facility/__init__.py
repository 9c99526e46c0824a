"""A simulated facility: runs in the real format, with known truth."""

from .simulation import Simulation, simulate

__all__ = ["Simulation", "simulate"]
