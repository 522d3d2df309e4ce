"""Where a sweep's studies are kept: a journal file, or PostgreSQL for workers on many machines.

Both storages have a clock, by which the trials of dead workers are found, and a lock that only one
process of a sweep can hold and that the system releases when that process is killed. Optuna's own
heartbeat serves neither: its journal has none, and Optuna runs it only inside `Study.optimize`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ocp_mamba.errors import StorageError, first_line
from ocp_mamba.redact import redact, remember

JOURNAL = "sweeps.journal"
SQLITE_MAGIC = b"SQLite format 3\x00"
MLFLOW_TABLES = {"experiments", "latest_metrics"}
LOCAL_HOSTS = {None, "", "localhost", "127.0.0.1", "::1"}
LOCK_KEY = 0x0C9_5EE9
HEARTBEAT = "heartbeat"
"""The user attribute of a trial that holds the time at which its worker was last known to live."""

POSTGRES_HELP = "postgresql://USER@HOST:5432/DATABASE"


@dataclass(frozen=True)
class SweepStorage:
    """An open storage of studies.

    Attributes:
        optuna: the storage as Optuna knows it.
        shown: its address without a password.
        grace: seconds without a heartbeat after which a trial's worker is taken for dead.
        locked: gives a context manager that holds the storage's lock.
        now: gives the time, in Unix seconds, by the clock that heartbeats are written with.
    """

    optuna: BaseStorage
    shown: str
    grace: int
    locked: Callable[[], AbstractContextManager[Any]]
    now: Callable[[], float]

    def beat(self, trial: Trial) -> None:
        """Record that the worker of a trial is alive.

        Raises:
            UpdateFinishedTrialError: the trial has ended, so another worker has taken it over.
        """
        trial.set_user_attr(HEARTBEAT, self.now())

    def silent(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return the running trials whose worker is dead.

        A trial that is begun under the lock gets its first heartbeat under the same lock. So one
        without a heartbeat had a worker that was killed while it held the lock.
        """
        since = self.now() - self.grace
        running = (t for t in trials if t.state == TrialState.RUNNING)
        return [t for t in running if t.user_attrs.get(HEARTBEAT, 0.0) < since]

    @contextmanager
    def beating(self, trial: Trial) -> Iterator[None]:
        """Record from a thread, four times within the grace, that a trial's worker is alive."""
        stop = threading.Event()

        def keep_beating() -> None:
            while not stop.wait(max(1, self.grace // 4)):
                try:
                    self.beat(trial)
                except Exception:  # no storage, or the trial is another worker's: `Sweep.holds`
                    continue

        thread = threading.Thread(target=keep_beating, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Let what the storage raises within the block be an error that says what to do."""
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ or error
            raise StorageError(
                f"storage {self.shown}: {first_line(cause)}. Run the sweep again when it answers: "
                "it goes on where it was"
            ) from error


def default_journal(tracking_uri: str, folder: Path) -> Path:
    """Return the journal's place: beside ``mlflow.db``, and without one in the folder given."""
    path = _sqlite_file(tracking_uri)
    return (path.parent if path else folder) / JOURNAL


def open_storage(address: str, *, tracking_uri: str, grace: int) -> SweepStorage:
    """Open or make a storage of studies.

    Args:
        address: the path of a journal file, or a PostgreSQL address as SQLAlchemy has it.
        tracking_uri: MLflow's store, which must be another one.
        grace: seconds without a heartbeat after which a trial's worker is taken for dead.

    Raises:
        StorageError: it is MLflow's, is of another kind, or cannot be reached.
    """
    remember(address)
    if "://" not in address:
        return _open_journal(Path(address).expanduser().resolve(), tracking_uri, grace)
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise StorageError(
            f"storage: not an address that can be read, wanted {POSTGRES_HELP} or the path of a "
            "journal file"
        ) from error
    if url.get_backend_name() != "postgresql":
        raise StorageError(
            f"storage {redact(address)}: found {url.get_backend_name()}, wanted {POSTGRES_HELP} "
            "or the path of a journal file"
        )
    return _open_postgres(url, tracking_uri, grace)


def _open_journal(path: Path, tracking_uri: str, grace: int) -> SweepStorage:
    if path == _sqlite_file(tracking_uri):
        raise StorageError(f"storage {path} is MLflow's own database; give studies another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        start = path.open("rb").read(len(SQLITE_MAGIC)) if path.exists() else b""
        if start == SQLITE_MAGIC:
            raise StorageError(f"storage {path} is an SQLite database, wanted a journal file")
        storage = JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"storage {path}: not a journal that can be used: {error}") from error
    mutex = path.with_name(f"{path.name}.mutex")
    return SweepStorage(storage, str(path), grace, lambda: FileLock(mutex), time.time)


def _open_postgres(url: URL, tracking_uri: str, grace: int) -> SweepStorage:
    shown = url.set(query={}).render_as_string(hide_password=True)
    if _same_database(url, tracking_uri):
        raise StorageError(f"storage {shown} is MLflow's own database; make another one: createdb")
    try:
        engine = create_engine(url, poolclass=NullPool)
        with _postgres_lock(engine):
            if set(inspect(engine).get_table_names()) >= MLFLOW_TABLES:
                raise StorageError(
                    f"storage {shown} holds MLflow's tables; studies need a database of their own: "
                    "createdb"
                )
            storage = RDBStorage(url.render_as_string(hide_password=False))
    except ImportError as error:
        raise StorageError(
            f"storage {shown}: {error}. The driver of postgresql:// comes with "
            "pip install 'ocp-mamba[postgres]'"
        ) from error
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"storage {shown}: {first_line(error)}") from error
    return SweepStorage(
        storage, shown, grace, lambda: _postgres_lock(engine), lambda: _postgres_now(engine)
    )


@contextmanager
def _postgres_lock(engine: Engine) -> Iterator[None]:
    """Hold the database's advisory lock; the server lets go of it with the connection."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
        yield


def _postgres_now(engine: Engine) -> float:
    """The server's clock: the workers' machines need not agree on the time."""
    with engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())")
        return float(row.scalar_one())


def _sqlite_file(tracking_uri: str) -> Path | None:
    """The file of MLflow's store, or None where the store is something else."""
    if not tracking_uri.startswith("sqlite:"):
        return None
    database = make_url(tracking_uri).database
    return Path(database).resolve() if database else None


def _same_database(url: URL, tracking_uri: str) -> bool:
    """Whether MLflow's store, where its address says so, is this database."""
    if not tracking_uri.startswith("postgresql"):
        return False
    other = make_url(tracking_uri)

    def place(address: URL) -> tuple[Any, ...]:
        host = None if address.host in LOCAL_HOSTS else address.host
        return host, address.port or 5432, address.database or address.username

    return place(url) == place(other)
