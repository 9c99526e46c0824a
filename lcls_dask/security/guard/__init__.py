"""Guards of Dask processes: one user's cluster, closed to everybody else. Imports distributed, unlike the rest."""

from .guard import Guard, guard_of
from .install import GuardedSecurity, SchedulerGuard, install, security_of, stop, verify, verify_or_exit
from .pages import dashboard_link

__all__ = [
    "Guard",
    "GuardedSecurity",
    "SchedulerGuard",
    "dashboard_link",
    "guard_of",
    "install",
    "security_of",
    "stop",
    "verify",
    "verify_or_exit",
]
