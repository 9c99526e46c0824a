"""``dask scheduler --preload lcls_dask.plugins.scheduler``: a scheduler for its owner and her workers alone.

The identity is the one that ``lcls.identity`` or ``CERTIFIED_CONFIG`` names, of the role scheduler. Importing this
guards the process, before it listens; what goes wrong there stops it. Exceptions in `dask_setup` would be swallowed.
"""

from distributed import Scheduler

from lcls_dask.security import renewal
from lcls_dask.security.guard import SchedulerGuard, install, stop
from lcls_dask.security.peer import Role

GUARD = install(role=Role.SCHEDULER)


def dask_setup(scheduler: Scheduler) -> None:
    """Have the scheduler verify its guards, which is the next thing it does, and keep its certificate fresh."""
    try:
        scheduler.add_plugin(SchedulerGuard())
        renewal.start(GUARD.identity.directory)
    except BaseException as error:
        stop(error)
