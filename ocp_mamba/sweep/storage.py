"""Where a sweep's studies are kept: a journal file, or PostgreSQL for workers on many machines.

Both know which trials are alive by a heartbeat, and both have a lock that only one process of a
sweep can hold, which the system takes back from a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ocp_mamba.errors import StorageError, first_line

MAX_RETRIES = 10
JOURNAL = "sweeps.journal"
SQLITE_MAGIC = b"SQLite format 3\x00"
MLFLOW_TABLES = {"experiments", "latest_metrics"}
LOCAL_HOSTS = {None, "", "localhost", "127.0.0.1", "::1"}
LOCK_KEY = 0x0C9_5EE9
HEARTBEAT = "heartbeat"
POSTGRES_HELP = "postgresql://USER@HOST:5432/DATABASE"

Retry = Callable[[optuna.Study, FrozenTrial], None]


class SweepStorage:
    """An open storage; ``shown`` is its address without a password."""

    def __init__(self, optuna_storage: BaseStorage, shown: str, lock: Callable[[], Any]) -> None:
        """Keep an Optuna storage that beats, its name for people, and its lock."""
        self.optuna = optuna_storage
        self.shown = shown
        self.locked = lock

    def beat(self, trial_id: int) -> None:
        """Say that a trial is alive."""
        assert isinstance(self.optuna, BaseHeartbeat)
        self.optuna.record_heartbeat(trial_id)

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
            f"storage {redacted(address)}: found {url.get_backend_name()}, wanted {POSTGRES_HELP} "
            "or the path of a journal file"
        )
    return _open_postgres(url, tracking_uri, grace)


def redacted(address: str) -> str:
    """Return an address without its password and options."""
    if "://" not in address:
        return address
    try:
        return make_url(address).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return address.split("://")[0] + "://***"


class _Journal(JournalStorage, BaseHeartbeat):
    """Optuna's journal with the heartbeat that it lacks, as a time in each trial's attributes.

    Times are the workers' clocks, so their machines must agree within the grace.
    """

    def __init__(self, path: Path, grace: int, retry: Retry) -> None:
        super().__init__(JournalFileBackend(str(path)))
        self._grace = grace
        self._retry = retry

    def record_heartbeat(self, trial_id: int) -> None:
        self.set_trial_system_attr(trial_id, HEARTBEAT, time.time())

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        since = time.time() - self._grace
        beats = {t._trial_id: t.system_attrs.get(HEARTBEAT) for t in running}
        return [trial_id for trial_id, beat in beats.items() if beat is not None and beat < since]

    def get_heartbeat_interval(self) -> int:
        return beat_seconds(self._grace)

    def get_heartbeat_stale_trial_callback(self) -> Retry:
        return self._retry


def beat_seconds(grace: int) -> int:
    """Return how often a worker says that it is alive: four times within the grace."""
    return max(1, grace // 4)


def _retry_callback() -> Retry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)


def _open_journal(path: Path, tracking_uri: str, grace: int) -> SweepStorage:
    if path == _sqlite_file(tracking_uri):
        raise StorageError(f"storage {path} is MLflow's own database; give studies another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        start = path.open("rb").read(len(SQLITE_MAGIC)) if path.exists() else b""
        if start == SQLITE_MAGIC:
            raise StorageError(f"storage {path} is an SQLite database, wanted a journal file")
        storage = _Journal(path, grace, _retry_callback())
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"storage {path}: not a journal that can be used: {error}") from error
    return SweepStorage(
        storage, str(path), lambda: _file_lock(path.with_name(f"{path.name}.mutex"))
    )


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system lets go of it when the process ends, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open_postgres(url: URL, tracking_uri: str, grace: int) -> SweepStorage:
    shown = redacted(url.render_as_string())
    if _same_database(url, tracking_uri):
        raise StorageError(f"storage {shown} is MLflow's own database; make another one: createdb")
    try:
        engine = create_engine(url, poolclass=NullPool)
        with warnings.catch_warnings(), _postgres_lock(engine):
            warnings.simplefilter("ignore", ExperimentalWarning)
            if set(inspect(engine).get_table_names()) >= MLFLOW_TABLES:
                raise StorageError(
                    f"storage {shown} holds MLflow's tables; studies need a database of their own: "
                    "createdb"
                )
            storage = RDBStorage(
                url.render_as_string(hide_password=False),
                heartbeat_interval=beat_seconds(grace),
                grace_period=grace,
                heartbeat_stale_trial_callback=_retry_callback(),
            )
    except ImportError as error:
        raise StorageError(
            f"storage {shown}: {error}. The driver of postgresql:// comes with "
            "pip install 'ocp-mamba[postgres]'"
        ) from error
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"storage {shown}: {first_line(error)}") from error
    return SweepStorage(storage, shown, lambda: _postgres_lock(engine))


@contextmanager
def _postgres_lock(engine: Engine) -> Iterator[None]:
    """Hold the database's advisory lock; the server lets go of it with the connection."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
        yield


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
