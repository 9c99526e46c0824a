"""What outlives the gateway's processes: the catalogue, revocations, and an index of the audit, in one database."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..errors import StateError, UnsupportedError, UriError
from .audit import SUFFIX, parse_line

_LONGEST = 200
_MOST = (1 << 63) - 1
#: Bytes of an audit file that are indexed in one transaction.
_PIECE = 4 << 20


class _Table(DeclarativeBase):
    """Base of the tables; the migrations make them, in the same words."""


class _Catalogue(_Table):
    __tablename__ = "catalogue"
    experiment: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    stamp: Mapped[str]
    row: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class _Revocation(_Table):
    __tablename__ = "revocations"
    identifier: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[str]
    reason: Mapped[str]


class _AuditFile(_Table):
    __tablename__ = "audit_files"
    name: Mapped[str] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(sa.BigInteger)


class _Audit(_Table):
    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float]
    user: Mapped[str]
    role: Mapped[str]
    experiment: Mapped[str]
    run: Mapped[int | None]
    operation: Mapped[str]
    key: Mapped[str]
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    decision: Mapped[str]
    reason: Mapped[str]
    status: Mapped[int]
    certificate: Mapped[str]
    token: Mapped[str | None]
    address: Mapped[str]
    count: Mapped[int]


_COLUMNS = tuple(column.name for column in _Audit.__table__.columns if column.name != "id")


class State:
    """The state database. Its methods block: they are for threads.

    Parameters
    ----------
    url : str
        As SQLAlchemy writes it: ``sqlite:////var/lib/lcls/gateway.db``, ``postgresql+psycopg://host/database``.

    Raises
    ------
    UriError
        The URL cannot be understood.
    UnsupportedError
        The database's driver is not installed.

    Examples
    --------
    >>> state = State("sqlite:///gateway.db")
    >>> state.migrate()
    >>> state.remember("tmox42619", 14, "stamp", {"events": 20})
    >>> state.rows("tmox42619")
    {14: ('stamp', {'events': 20})}
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            options: dict[str, Any] = {}
            if parsed.get_backend_name() == "sqlite":
                options = {"connect_args": {"timeout": 5}}
                if parsed.database:  # private from the first byte on
                    os.close(os.open(parsed.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            elif parsed.get_backend_name() == "postgresql":
                options = {"connect_args": {"connect_timeout": 3}, "pool_pre_ping": True}
            self._engine: Engine = sa.create_engine(parsed, **options)
        except (ArgumentError, NoSuchModuleError) as error:
            raise UriError(f"the state database's URL cannot be understood: {_first_line(error)}") from error
        except ImportError as error:
            raise UnsupportedError(
                f"the state database needs the package {error.name!r}; pip install 'lcls_dask[postgresql]'"
            ) from error
        except OSError as error:
            raise StateError(f"{parsed.database}: cannot be opened: {error.strerror}") from error
        self._shown = parsed.render_as_string(hide_password=True)

    def migrate(self) -> None:
        """Bring the tables up to what this version needs; one process does it before the others start."""
        folder = str(Path(__file__).parent / "migrations")
        script = ScriptDirectory(folder, version_locations=[folder])
        options = {"script": script, "fn": lambda revision, _: script._upgrade_revs("head", revision)}
        with self._errors(), self._engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("pragma journal_mode = wal")  # readers do not wait for the writer
                connection.commit()
            context = MigrationContext.configure(connection, opts=options)
            with context.begin_transaction(), Operations.context(context):
                context.run_migrations()

    def rows(self, experiment: str) -> dict[int, tuple[str, dict[str, Any]]]:
        """Stamp and row of each run of an experiment that was ever looked at."""
        wanted = sa.select(_Catalogue.run, _Catalogue.stamp, _Catalogue.row).where(_Catalogue.experiment == experiment)
        with self._errors(), self._engine.connect() as connection:
            return {run: (stamp, row) for run, stamp, row in connection.execute(wanted)}

    def remember(self, experiment: str, run: int, stamp: str, row: Mapping[str, Any]) -> None:
        """Keep the row of a run whose files have this stamp."""
        table = _Catalogue.__table__
        where = (_Catalogue.experiment == experiment) & (_Catalogue.run == run)
        with self._errors(), self._engine.begin() as connection:
            connection.execute(sa.delete(_Catalogue).where(where))
            connection.execute(
                sa.insert(table).values(experiment=experiment, run=run, stamp=stamp, row=dict(row))  # type: ignore[arg-type]
            )

    def index_audit(self, directory: Path) -> int:
        """Take in what was appended to the audit's files; for one process at a time.

        Returns
        -------
        int
            Lines that could not be read: cut by a full disk or a kill.
        """
        damaged = 0
        with self._errors(), self._engine.connect() as connection:
            offsets = {
                name: offset for name, offset in connection.execute(sa.select(_AuditFile.name, _AuditFile.offset))
            }
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            offset = offsets.get(path.name)
            while (piece := _lines_from(path, offset or 0)) is not None:
                lines, end = piece
                parsed = [parse_line(line) for line in lines]
                records = [record for record in parsed if record is not None and record.keys() >= set(_COLUMNS)]
                damaged += len(lines) - len(records)
                self._add(path.name, offset, end, records)
                offset = end
        return damaged

    def _add(self, name: str, offset: int | None, end: int, records: Iterable[Mapping[str, Any]]) -> None:
        values = [{column: _storable(record.get(column)) for column in _COLUMNS} for record in records]
        with self._errors(), self._engine.begin() as connection:
            if values:
                connection.execute(sa.insert(_Audit), values)
            if offset is None:
                connection.execute(sa.insert(_AuditFile).values(name=name, offset=end))
            else:
                connection.execute(sa.update(_AuditFile).where(_AuditFile.name == name).values(offset=end))

    def audit(
        self, *, since: float = 0.0, user: str | None = None, experiment: str | None = None
    ) -> list[dict[str, Any]]:
        """What the index knows, oldest first."""
        wanted = sa.select(*(getattr(_Audit, name) for name in _COLUMNS)).where(_Audit.time >= since)
        if user is not None:
            wanted = wanted.where(_Audit.user == user)
        if experiment is not None:
            wanted = wanted.where(_Audit.experiment == experiment)
        with self._errors(), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(wanted.order_by(_Audit.time, _Audit.id)).mappings()]

    def share_revocations(self, lines: Iterable[tuple[str, str, str]]) -> None:
        """Tell all gateways on this database what is revoked: ids, since when, and why."""
        with self._errors(), self._engine.begin() as connection:
            known = set(connection.execute(sa.select(_Revocation.identifier)).scalars())
            new = {identifier: (since, reason) for identifier, since, reason in lines if identifier not in known}
            if new:
                values = [{"identifier": name, "since": since, "reason": why} for name, (since, why) in new.items()]
                connection.execute(sa.insert(_Revocation), values)

    def revoked(self) -> frozenset[str]:
        """Serials of certificates and revocation ids of tokens."""
        with self._errors(), self._engine.connect() as connection:
            return frozenset(connection.execute(sa.select(_Revocation.identifier)).scalars())

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    def _errors(self) -> "_Errors":
        return _Errors(self._shown)


class _Errors:
    """Turns what the database says into one line, without its password."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SQLAlchemyError):
            raise StateError(f"{self._shown}: {_first_line(error)}; see whether the database runs") from error


def _lines_from(path: Path, offset: int) -> tuple[list[bytes], int] | None:
    """Whole lines after an offset and where they end, None where there are none yet."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(_PIECE)
    end = data.rfind(b"\n") + 1
    return (data[: end - 1].split(b"\n"), offset + end) if end else None


def _storable(value: Any) -> Any:
    # one odd line must not stop the index: no database takes a NUL, half a character, or a number of 70 bits
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return min(value, _MOST)
    return str(value).replace("\0", "").encode(errors="replace").decode()[:_LONGEST]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
