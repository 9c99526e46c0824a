"""``dask worker --preload-nanny lcls_dask.plugins.nanny``: the guard of a worker's nanny, a server of its own.

Give it on the command line: ``dask worker`` passes over ``distributed.nanny.preload`` and its environment variable.
A guarded worker ends when its nanny has no guard.
"""

from distributed import Nanny

from lcls_dask.security import renewal
from lcls_dask.security.guard import install, verify_or_exit
from lcls_dask.security.peer import Role

GUARD = install(role=Role.WORKER)


async def dask_setup(nanny: Nanny) -> None:
    """Verify the guards before the nanny starts its worker."""
    await verify_or_exit(nanny)
    renewal.start(GUARD.identity.directory)
