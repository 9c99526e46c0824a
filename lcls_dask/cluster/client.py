"""`connect`: a client of a guarded cluster, which is started for it where it does not run yet."""

import os
import socket
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed import Client, LocalCluster
from distributed.deploy.cluster import Cluster
from distributed.utils import get_ip_interface

from .. import config
from ..errors import ClusterError, WorkersMissingError
from ..security import find_identity, load_identity, renewal
from ..security.enrolment import enrol
from ..security.guard import SchedulerGuard, dashboard_link, security_of
from . import jobs
from .minting import Domain, Minted, facility_domain, mint, own_domain
from .requeue import patient
from .supply import Supply

#: Packages that must be of one version everywhere: they send each other pickles, or name tasks.
_SAME = ("python", "dask", "distributed", "lcls_dask")
#: Where jupyter-server-proxy, of a JupyterHub's server, shows a port of that server's machine.
_THROUGH_JUPYTERHUB = "{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status"


class ClusterClient(Client):
    """A `distributed.Client` that ends the cluster that was started for it when it is closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._ended: Callable[[], Any] | None = None
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    @property
    def dashboard_link(self) -> str:
        """Link to the dashboard, which signs its reader in: once, and within a minute. Ask for it anew each time."""
        return dashboard_link(self)

    def close(self, *arguments: Any, **options: Any) -> Any:
        """Close the client, and its cluster.

        Parameters
        ----------
        *arguments, **options
            Of `distributed.Client.close`.
        """
        closed: Any = super().close(*arguments, **options)  # type: ignore[no-untyped-call]
        if self._ended is not None:
            self._ended()
        return closed


def connect(
    cluster: str | type[Any] | Cluster = "local",
    *,
    workers: int | None = None,
    adapt: tuple[int, int] | None = None,
    experiments: Iterable[str] | None = None,
    identity: str | os.PathLike[str] | None = None,
    timeout: float | str | None = None,
    **options: Any,
) -> ClusterClient:
    """Connect to a guarded Dask cluster, whose processes speak to nobody but its owner.

    A cluster that is started here has an authority's certificates of its own, made and removed with it: from the
    facility's issuer (``lcls.issuer``), so that workers can read from its gateways, or else from one in this process.

    Parameters
    ----------
    cluster : str, type or distributed.deploy.Cluster
        ``"local"``, a batch system (``"slurm"``, ``"pbs"``, ``"lsf"``, ``"sge"``, ``"oar"``, ``"moab"``,
        ``"htcondor"``) or a class of dask-jobqueue; else ``"tls://host:port"`` or a cluster that runs.
    workers : int, optional
        How many to start and to wait for. Of a cluster that runs: to wait for.
    adapt : (int, int), optional
        Least and most workers: Dask adds and retires them as there is work, and replaces those that end.
    experiments : iterable of str, optional
        What workers may read through gateways; all that the user may, where neither it nor
        ``lcls.cluster.experiments`` is given.
    identity : path-like, optional
        The user's, as `lcls_dask.security.find_identity`.
    timeout : float or str, optional
        Seconds (or as ``"5 minutes"``) to wait for the workers; ``lcls.cluster.timeout`` by default.
    **options
        For `distributed.LocalCluster` or the class of dask-jobqueue, as they are; see also ``lcls.cluster.options``.

    Returns
    -------
    distributed.Client
        Closing it ends the cluster that was started for it.

    Raises
    ------
    ClusterError
        The cluster cannot be started, is not guarded, or has other versions.
    WorkersMissingError
        Workers have not come in time; the note says why, and shows the job script.
    AccessError
        The issuer refuses, or the cluster is somebody else's.
    UnsupportedError
        dask-jobqueue is not installed.

    Examples
    --------
    >>> with connect("local", workers=2) as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    seconds = float(parse_timedelta(config.cluster("timeout") if timeout is None else timeout))
    if workers is not None and adapt is not None:
        raise ClusterError("give workers= or adapt=, not both: adapt=(2, 10) starts with 2")
    _link_through_jupyterhub()
    if isinstance(cluster, Cluster) or (isinstance(cluster, str) and "://" in cluster):
        if options:
            raise ClusterError(f"{next(iter(options))}= is for a cluster that is started; this one runs already")
        return _join(cluster, workers, adapt, identity, seconds)
    kind = cluster if isinstance(cluster, str) else "class"
    if kind not in {"local", "class", *jobs.KINDS}:
        known = ", ".join(["local", *jobs.KINDS])
        raise ClusterError(f"{kind[:80]!r} is no cluster: give one of {known}, or tls://host:port")
    number = (None if kind == "local" else 0) if workers is None else workers
    options = dict(dask.config.get(f"lcls.cluster.options.{kind}", {})) | options
    given = config.cluster("experiments") if experiments is None else experiments
    if kind == "local":
        return _local(number, adapt, given, identity, seconds, options)
    cls = jobs.cluster_class(kind) if isinstance(cluster, str) else cluster
    return _queued(cls, number or 0, adapt, given, identity, seconds, options)


def _join(
    cluster: str | Cluster,
    workers: int | None,
    adapt: tuple[int, int] | None,
    identity: str | os.PathLike[str] | None,
    seconds: float,
) -> ClusterClient:
    address = cluster if isinstance(cluster, str) else cluster.scheduler_address
    if not address.startswith("tls://"):
        raise ClusterError(
            f"{address} is not guarded: start it by lcls_dask.connect, or with lcls_dask.plugins on tls://"
        )
    client = ClusterClient(cluster, security=security_of(load_identity(find_identity(identity)).directory))
    try:
        if adapt is not None:
            if isinstance(cluster, str):
                raise ClusterError("adapt= needs a cluster, not its address: who has started it scales it")
            cluster.adapt(minimum=adapt[0], maximum=adapt[1])
        _wait(client, workers or (adapt[0] if adapt else 0), seconds, lambda: ("no worker has come", ""))
        _check_versions(client)
    except BaseException:
        client.close()
        raise
    return client


def _local(
    workers: int | None,
    adapt: tuple[int, int] | None,
    experiments: Iterable[str] | None,
    identity: str | os.PathLike[str] | None,
    seconds: float,
    options: dict[str, Any],
) -> ClusterClient:
    minted = _minted(facility_domain(identity) or own_domain("127.0.0.1"), experiments)
    supply = Supply(minted.enrolment, minted.manager, 5.0, lambda: 1)
    try:
        supply.start()
        supply.close()  # all workers here are children of this process, and have one identity
        worker = enrol(minted.enrolment.directory, minted.directory / "worker").directory
        renewal.start(worker, minted.domain.issuer)
        if minted.domain.facility:
            settings = dask.config.get("lcls") | {"identity": str(worker), "issuer": minted.domain.issuer}
            options["config"] = {"lcls": settings} | options.get("config", {})
        scheduler = _guarded(options.pop("scheduler_kwargs", {}))
        started = _started(
            lambda: LocalCluster(
                n_workers=workers if adapt is None else adapt[0],
                protocol="tls://",
                security=security_of(minted.manager, scheduler=minted.scheduler, worker=worker),
                scheduler_kwargs=scheduler,
                **({"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"} | options),
            )
        )
    except BaseException:
        minted.close()
        raise
    wanted = len(started.worker_spec)
    return _owned(started, minted, supply, adapt, wanted, seconds, lambda: ("workers have not started", ""))


def _queued(
    cls: type[Any],
    workers: int,
    adapt: tuple[int, int] | None,
    experiments: Iterable[str] | None,
    identity: str | os.PathLike[str] | None,
    seconds: float,
    options: dict[str, Any],
) -> ClusterClient:
    if not hasattr(cls, "job_cls"):
        raise ClusterError(f"{cls.__name__} is no class of dask-jobqueue")
    name = options.get("config_name") or cls.job_cls.default_config_name()
    interface = options.get("interface") or dask.config.get(f"jobqueue.{name}.interface", None)
    host = get_ip_interface(interface) if interface else socket.gethostbyname(socket.gethostname())
    domain = facility_domain(identity) or own_domain(host)
    walltime = options.get("walltime") or dask.config.get(f"jobqueue.{name}.walltime", None)
    minted = _minted(domain, experiments, config.cluster_directory(), walltime)
    try:
        given = jobs.job_options(cls, options, minted.enrolment.directory, domain.issuer, None if interface else host)
        given["scheduler_options"] = _guarded(given["scheduler_options"])
        security = security_of(minted.manager, scheduler=minted.scheduler)
        started = _started(lambda: patient(cls)(security=security, **given))
    except BaseException:
        minted.close()
        raise
    reserve = int(config.cluster("secrets"))
    supply = Supply(
        minted.enrolment,
        minted.manager,
        float(config.cluster("secret-minutes")),
        lambda: reserve + jobs.outstanding(started),
    )
    try:
        supply.start()
        if workers:
            started.scale(workers)
    except BaseException:
        _end(started, supply, minted)
        raise
    first = {path.name for path in minted.enrolment.waiting}

    def why() -> tuple[str, str]:
        return jobs.why_no_workers(started, first <= {path.name for path in minted.enrolment.waiting})

    return _owned(started, minted, supply, adapt, workers, seconds, why)


def _minted(
    domain: Domain, experiments: Iterable[str] | None, shared: Path | None = None, walltime: str | None = None
) -> Minted:
    hours = float(config.cluster("hours"))
    # a job that ends some minutes later than it should is still a member
    worker_hours = hours if walltime is None else min(hours, jobs.parse_walltime(walltime) / 3600 + 0.1)
    try:
        minted = mint(domain, experiments, hours, worker_hours, shared)
    except BaseException:
        domain.close()
        raise
    dask.config.set({"lcls.audit": str(config.cluster_audit())})
    for directory in (minted.scheduler, minted.manager):
        renewal.start(directory, domain.issuer)
    return minted


def _guarded(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a scheduler that does not start unless it is guarded, whatever else they say."""
    return dict(scheduler) | {"plugins": [SchedulerGuard(), *scheduler.get("plugins", ())]}


def _started(start: Callable[[], Any]) -> Any:
    try:
        return start()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        reason: BaseException = error
        while reason.__cause__ is not None:  # distributed says "failed to start" twice before it says why
            reason = reason.__cause__
        raise ClusterError(f"the cluster cannot be started: {' '.join(str(reason).split())}") from error


def _owned(
    cluster: Any,
    minted: Minted,
    supply: Supply,
    adapt: tuple[int, int] | None,
    workers: int,
    seconds: float,
    why: Callable[[], tuple[str, str]],
) -> ClusterClient:
    """A client that ends the cluster with itself, or with this process."""
    try:
        client = ClusterClient(cluster, security=security_of(minted.domain.owner.directory))
    except BaseException:
        _end(cluster, supply, minted)
        raise
    client._ended = weakref.finalize(client, _end, cluster, supply, minted)
    try:
        if adapt is not None:
            cluster.adapt(minimum=adapt[0], maximum=adapt[1])
        _wait(client, adapt[0] if adapt is not None else workers, seconds, why)
        _check_versions(client)
    except BaseException:
        client.close()
        raise
    return client


def _end(cluster: Any, supply: Supply, minted: Minted) -> None:
    supply.close()
    try:
        cluster.close()
    finally:
        minted.close()


def _wait(client: Client, workers: int, seconds: float, why: Callable[[], tuple[str, str]]) -> None:
    if workers < 1:
        return
    try:
        client.wait_for_workers(workers, timeout=seconds)
    except TimeoutError:
        there = len(client.scheduler_info(n_workers=-1)["workers"])
        cause, details = why()
        error = WorkersMissingError(f"{there} of {workers} workers have come in {seconds:g} s: {cause}")
        if details:
            error.add_note(details)
        raise error from None


def _check_versions(client: Client) -> None:
    told: Any = client.get_versions(packages=["lcls_dask"])
    own = _versions(told["client"])
    for where, entry in {"the scheduler": told["scheduler"], **told["workers"]}.items():
        other = _versions(entry) if isinstance(entry, dict) else {}
        for package in _SAME:
            if other and other.get(package) != own[package]:
                raise ClusterError(
                    f"{where} runs {package} {other.get(package)}, this process {own[package]}: "
                    "use one environment (for jobs: python=)"
                )


def _versions(entry: dict[str, Any]) -> dict[str, str]:
    return dict(entry["packages"])


def _link_through_jupyterhub() -> None:
    link = dask.config.get("distributed.dashboard.link")
    if "JUPYTERHUB_SERVICE_PREFIX" in os.environ and link == "{scheme}://{host}:{port}/status":
        dask.config.set({"distributed.dashboard.link": _THROUGH_JUPYTERHUB})
