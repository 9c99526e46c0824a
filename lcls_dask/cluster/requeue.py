"""Jobs that the batch system puts back into its queue, after a preemption or a node's failure, are waited for.

dask-jobqueue cancels a job whose worker has been away for 15 s. Slurm lets a job that it has requeued begin again after
two minutes at the earliest. So before a job is given up the queue is asked, and one that waits there counts as new.
"""

import asyncio
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import SpecCluster

from . import jobs

#: Seconds between two looks at a job that is just ending: whether it is requeued will be seen when it has ended.
_AGAIN = 1.0


def patient(cls: type[Any]) -> type[Any]:
    """A class of dask-jobqueue whose clusters leave alone what its batch system has requeued.

    Parameters
    ----------
    cls : type
        A subclass of `dask_jobqueue.JobQueueCluster`.

    Returns
    -------
    type
        A subclass of it with the same name.
    """
    return type(cls.__name__, (_Patient, cls), {"__doc__": cls.__doc__})


class _Patient(SpecCluster):
    def _update_worker_status(self, op: str, msg: Any) -> None:
        if op == "remove":
            name = self.scheduler_info["workers"][msg]["name"]
            seconds = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
            self._look_later(name, seconds)
        # instead of SpecCluster's own, which cancels the job without a question
        Cluster._update_worker_status(self, op, msg)

    def _look_later(self, name: Any, seconds: float) -> None:
        # no task that waits: a cluster that is closed meanwhile would have to wait for it
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, lambda: self._futures.add(asyncio.ensure_future(self._look(name))))

    async def _look(self, name: Any) -> None:
        """Give up a job whose worker is away, unless it is in the queue again."""
        job = getattr(self.workers.get(name), "job_id", None)
        if not self._is_away(name):
            return
        state = await asyncio.to_thread(jobs.state, self, job)
        if not self._is_away(name) or state is jobs.State.WAITS:
            return
        if state is jobs.State.ENDING:
            self._look_later(name, _AGAIN)
        else:
            await self.workers.pop(name).close()

    def _is_away(self, name: Any) -> bool:
        there = {worker["name"] for worker in self.scheduler_info["workers"].values()}
        return self.status is Status.running and name in self.workers and name not in there
