"""Every error that lcls_dask raises on purpose.

::

    LclsError
    ├── UriError              ValueError         the URI or path cannot be understood
    ├── RunNotFoundError      FileNotFoundError  there is no such run, stream or experiment
    ├── SeveralRunsError      ValueError         several runs are there and none was chosen
    ├── LiveRunError          ValueError         an unfinished run was opened without a snapshot
    ├── SnapshotError         LookupError        the snapshot is not (or no longer) what the files hold
    ├── SelectionError        KeyError           no such detector, variable or event
    ├── ArgumentError         ValueError         an operation cannot be done with these values
    ├── FormatError           ValueError         a file is damaged or is not what its name says
    ├── AccessError           PermissionError    this user may not read the run
    │   └── IdentityError     PermissionError    a certificate, key or token is missing, unsafe or not what it must be
    ├── PolicyError           ValueError         a policy or a revocation list cannot be read
    ├── ConfinementError      PermissionError    a file points out of its run's directory
    ├── TargetExistsError     FileExistsError    what shall be written is there already
    ├── SimulationError       ValueError         what was asked for cannot be simulated
    ├── GatewayError          RuntimeError       a gateway cannot start
    ├── GuardError            RuntimeError       a Dask process is not guarded as it must be
    ├── ClusterError          RuntimeError       a Dask cluster cannot be started or used
    ├── WorkersMissingError   TimeoutError       workers have not come in time
    ├── UnreachableError      ConnectionError    a gateway does not answer
    ├── StorageError          OSError            the disk that the runs lie on is away
    ├── StateError            ConnectionError    the gateway's state database cannot be used
    └── UnsupportedError      NotImplementedError  a feature that a package missing here would give

Each one is also the builtin that a caller would expect, and its message is one line: what is wrong,
where, and what to do next.
"""


class LclsError(Exception):
    """Base of all errors of this package."""

    def __str__(self) -> str:
        # KeyError would show the repr, OSError its errno: the message alone is what people need
        return str(self.args[0]) if self.args else self.__class__.__name__


class UriError(LclsError, ValueError):
    """The URI or path cannot be understood."""


class RunNotFoundError(LclsError, FileNotFoundError):
    """There is no such run, stream or experiment."""


class SeveralRunsError(LclsError, ValueError):
    """Several runs are there and none was chosen."""


class LiveRunError(LclsError, ValueError):
    """An unfinished run was opened without a snapshot."""


class SnapshotError(LclsError, LookupError):
    """The snapshot is not, or no longer, what the files hold."""


class SelectionError(LclsError, KeyError):
    """No such detector, variable or event."""


class ArgumentError(LclsError, ValueError):
    """An operation cannot be done with these values."""


class FormatError(LclsError, ValueError):
    """A file is damaged or is not what its name says."""


class AccessError(LclsError, PermissionError):
    """This user may not read the run."""


class IdentityError(AccessError):
    """A certificate, key or token is missing, unsafe or not what it must be."""


class PolicyError(LclsError, ValueError):
    """A policy or a list of revocations cannot be read."""


class ConfinementError(LclsError, PermissionError):
    """A file points out of its run's directory."""


class TargetExistsError(LclsError, FileExistsError):
    """What shall be written is there already, or somebody else is writing it."""


class SimulationError(LclsError, ValueError):
    """What was asked for cannot be simulated."""


class GatewayError(LclsError, RuntimeError):
    """A gateway cannot start."""


class GuardError(LclsError, RuntimeError):
    """A Dask process is not guarded as it must be, so it does not start."""


class ClusterError(LclsError, RuntimeError):
    """A Dask cluster cannot be started or used."""


class WorkersMissingError(LclsError, TimeoutError):
    """The workers of a Dask cluster have not come in time; the note says why, and shows the job script."""


class UnreachableError(LclsError, ConnectionError):
    """A gateway does not answer."""


class StorageError(LclsError, OSError):
    """The disk that the runs lie on is away."""


class StateError(LclsError, ConnectionError):
    """The gateway's state database cannot be used."""


class UnsupportedError(LclsError, NotImplementedError):
    """A feature that needs a package or a service which is not here."""
