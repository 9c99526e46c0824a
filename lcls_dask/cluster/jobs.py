"""Workers as jobs of a batch system: what dask-jobqueue is given, and why jobs do not come."""

import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from importlib import import_module
from pathlib import Path
from typing import Any

import dask.config

from .. import config
from ..errors import ClusterError, UnsupportedError

#: Batch systems by their names in dask-jobqueue's configuration.
KINDS = {
    "htcondor": "HTCondorCluster",
    "lsf": "LSFCluster",
    "moab": "MoabCluster",
    "oar": "OARCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "slurm": "SLURMCluster",
}
#: How a batch system tells where a job is.
_ASK = {
    "slurm": "squeue --noheader --format=%i|%T|%r --jobs={jobs}",
    "pbs": "qstat {jobs}",
    "sge": "qstat -j {jobs}",
    "lsf": "bjobs {jobs}",
}
#: States of Slurm's jobs that wait to begin, again or for the first time, and of those that have not quite ended.
_SLURM_WAITS = frozenset("PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT CONFIGURING SUSPENDED".split())
_SLURM_ENDING = frozenset("COMPLETING PREEMPTED SIGNALING STAGE_OUT".split())
_PRELOADS = ("--preload", "lcls_dask.plugins.worker", "--preload-nanny", "lcls_dask.plugins.nanny")


class State(Enum):
    """Where a job is, as far as its batch system tells."""

    WAITS = auto()
    ENDING = auto()
    OTHER = auto()


def cluster_class(kind: str) -> type[Any]:
    """The class of dask-jobqueue for a batch system.

    Parameters
    ----------
    kind : str

    Returns
    -------
    type

    Raises
    ------
    UnsupportedError
        dask-jobqueue is not installed.
    """
    try:
        with _interrupt_kept():
            found: type[Any] = getattr(import_module("dask_jobqueue"), KINDS[kind])
    except ModuleNotFoundError:
        raise UnsupportedError(f"connect({kind!r}) needs dask-jobqueue: pip install 'lcls_dask[jobqueue]'") from None
    return found


@contextmanager
def _interrupt_kept() -> Iterator[None]:
    """Importing dask-jobqueue lets Ctrl-C end the process at once: in a notebook, the kernel with all that it holds."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have, or change, a handler
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if before is not None:  # one that was not set from Python
            signal.signal(signal.SIGINT, before)


def job_options(
    cls: type[Any], options: Mapping[str, Any], secrets: Path, issuer: str, host: str | None
) -> dict[str, Any]:
    """Options of a dask-jobqueue cluster, with what makes its jobs members of a guarded one.

    Parameters
    ----------
    cls : type
        A subclass of `dask_jobqueue.JobQueueCluster`.
    options : dict
        The user's; those of her job script and command line stay.
    secrets : Path
        Directory of enrolment secrets.
    issuer : str
        Its address.
    host : str or None
        Where the scheduler listens; what the interface has, or all, where it is None.

    Returns
    -------
    dict

    Raises
    ------
    ClusterError
        They lack cores or memory, or the walltime is none.
    """
    name = options.get("config_name") or cls.job_cls.default_config_name()

    def _given(option: str, default: Any) -> Any:
        value = options.get(option)
        key = f"jobqueue.{name}.{option.replace('_', '-')}"
        return dask.config.get(key, default) or default if value is None else value

    if _given("cores", None) is None or _given("memory", None) is None:
        raise ClusterError(f"say what a job of {name} is given: connect({name!r}, cores=8, memory='24GB', ...)")
    worker = [*_given("worker_extra_args", []), *_PRELOADS]
    walltime = _given("walltime", None)
    if walltime is not None and "--lifetime" not in worker:
        seconds = parse_walltime(walltime)
        early = config.retire_before(seconds)
        # not all at once: what one hands over, the others must take
        worker += ["--lifetime", f"{seconds - early:.0f}s", "--lifetime-stagger", f"{early / 2:.0f}s"]
    logs = _given("log_directory", str(config.cluster_logs()))
    Path(logs).expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
    scheduler = {"dashboard_address": "127.0.0.1:0"} | dict(_given("scheduler_options", {}))
    if host is not None and not {"host", "interface"} & set(scheduler):
        scheduler["host"] = host
    joining = prologue(_given("python", sys.executable), secrets, issuer)
    return dict(options) | {
        "worker_extra_args": worker,
        "job_script_prologue": [*_given("job_script_prologue", []), *joining],
        "log_directory": logs,
        "scheduler_options": scheduler,
        "protocol": "tls://",
    }


def prologue(python: str, secrets: Path, issuer: str) -> list[str]:
    """Lines of a job script that make its worker a member: paths and addresses, nothing secret.

    Parameters
    ----------
    python : str
    secrets : Path
    issuer : str

    Returns
    -------
    list of str

    Examples
    --------
    >>> lines = prologue("python", Path("/shared/c1-secrets"), "https://issuer:4433")
    >>> lines[0]
    'CERTIFIED_CONFIG=$(python -m lcls_dask identity enrol /shared/c1-secrets) || exit 1'
    """
    settings = {**config.chosen(), "issuer": issuer}
    for private in ("identity", "token"):
        settings.pop(private, None)  # the user's own: a worker has its own
    return [
        f"CERTIFIED_CONFIG=$({python} -m lcls_dask identity enrol {shlex.quote(str(secrets))}) || exit 1",
        """trap 'rm -rf "$CERTIFIED_CONFIG"' EXIT""",
        'export CERTIFIED_CONFIG DASK_LCLS__IDENTITY="$CERTIFIED_CONFIG"',
        *(
            f"export DASK_LCLS__{name.upper().replace('-', '_')}={shlex.quote(value)}"
            for name, value in sorted(settings.items())
        ),
    ]


def parse_walltime(walltime: str) -> float:
    """Seconds of a walltime, as batch systems write them.

    Parameters
    ----------
    walltime : str
        ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, with ``days-`` before it or not.

    Returns
    -------
    float

    Raises
    ------
    ClusterError
        It is none of these.

    Examples
    --------
    >>> parse_walltime("01:30:00"), parse_walltime("1-00"), parse_walltime("90")
    (5400.0, 86400.0, 5400.0)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(walltime).strip())
    if match is None:
        raise ClusterError(f"{walltime!r} is no walltime: write hours:minutes:seconds")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = 0, *(*numbers, 0)[:2]
    return float((((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def outstanding(cluster: Any) -> int:
    """Jobs that were asked for and whose workers have not all come.

    Parameters
    ----------
    cluster : dask_jobqueue.JobQueueCluster

    Returns
    -------
    int
    """
    there = len(cluster.scheduler_info.get("workers", {}))
    workers_of_a_job = int(max(1, cluster._dummy_job.worker_processes))
    return max(0, len(cluster.worker_spec) - there // workers_of_a_job)


def why_no_workers(cluster: Any, untouched: bool) -> tuple[str, str]:
    """The likely cause why jobs' workers have not come, and what shows it.

    Parameters
    ----------
    cluster : dask_jobqueue.JobQueueCluster
    untouched : bool
        No job has taken an enrolment secret.

    Returns
    -------
    cause : str
        One line.
    details : str
        What the batch system says, the end of the jobs' logs, the job script.
    """
    jobs = [str(job.job_id) for job in cluster.workers.values() if getattr(job, "job_id", None)]
    queue = _queue(cluster, jobs)
    logs = list(_logs(cluster, jobs))
    if not jobs:
        cause = "no job was accepted by the batch system"
    elif re.search(r"\|PENDING\|(.*)", queue):
        reason = re.search(r"\|PENDING\|(.*)", queue)
        cause = (
            f"{queue.count('|PENDING|')} of {len(jobs)} jobs wait in the queue ({reason.group(1) if reason else ''})"
        )
    elif any(logs):
        cause = "jobs have started but their workers have not come; the end of their logs may say why"
    elif untouched:
        cause = "no job has taken an enrolment secret: do the nodes see lcls.cluster.directory and the issuer?"
    else:
        cause = "jobs have taken enrolment secrets, but no worker reaches the scheduler: check interface and firewall"
    parts = [("batch system", queue), *(("log", log) for log in logs), ("job script", cluster.job_script())]
    return cause, "\n\n".join(f"--- {title}\n{text.rstrip()}" for title, text in parts if text)


def state(cluster: Any, job: str | None) -> State:
    """Where a job is; of Slurm's alone.

    Parameters
    ----------
    cluster : dask_jobqueue.JobQueueCluster
    job : str or None
        None of one that has no number yet.

    Returns
    -------
    State
    """
    if job is None or cluster.job_cls.default_config_name() != "slurm":
        return State.OTHER
    told = {line.split("|")[1] for line in _queue(cluster, [job]).splitlines() if line.count("|") == 2}
    if told & _SLURM_WAITS:
        return State.WAITS
    return State.ENDING if told & _SLURM_ENDING else State.OTHER


def _queue(cluster: Any, jobs: list[str]) -> str:
    command = _ASK.get(cluster.job_cls.default_config_name())
    if command is None or not jobs:
        return ""
    try:
        done = subprocess.run(
            shlex.split(command.format(jobs=",".join(jobs))), capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command.split()[0]} does not answer: {error}"
    return done.stdout + done.stderr


def _logs(cluster: Any, jobs: list[str]) -> Iterator[str]:
    """The last lines of the last jobs' error files."""
    folder = Path(cluster._job_kwargs["log_directory"]).expanduser()
    for job in jobs[-2:]:
        for path in sorted(folder.glob(f"*{job}.e*")):
            if lines := path.read_text(errors="replace").splitlines()[-15:]:
                yield f"{path}:\n" + "\n".join(lines)
