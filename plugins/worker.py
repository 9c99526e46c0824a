"""``dask worker --preload lcls_dask.plugins.worker --preload-nanny lcls_dask.plugins.nanny``: a guarded worker.

The identity is the one that ``lcls.identity`` or ``CERTIFIED_CONFIG`` names, of the role worker. Importing this guards
the process, before it listens; what goes wrong there stops it. Exceptions in `dask_setup` would be swallowed.
"""

from distributed import Worker

from lcls_dask.security import renewal
from lcls_dask.security.guard import install, verify_or_exit
from lcls_dask.security.peer import Role

GUARD = install(role=Role.WORKER)


async def dask_setup(worker: Worker) -> None:
    """Verify the guards before the worker registers."""
    await verify_or_exit(worker)
    renewal.start(GUARD.identity.directory)
