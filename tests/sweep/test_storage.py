from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState
from postgres import PASSWORD, Postgres

from ocp_mamba.errors import StorageError
from ocp_mamba.sweep.attempts import MAX_RETRIES, begin_again, count, first_number, history
from ocp_mamba.sweep.storage import SweepStorage, default_journal, open_storage

TRACKING = "sqlite:///elsewhere/mlflow.db"


@pytest.fixture(params=["journal", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty storage, of each kind."""
    if request.param == "journal":
        return str(tmp_path / "s.journal")
    server: Postgres = request.getfixturevalue("postgres")
    return server.create_database(f"store-{tmp_path.parent.name}-{tmp_path.name}")


def opened(address: str, grace: int = 60) -> SweepStorage:
    return open_storage(address, tracking_uri=TRACKING, grace=grace)


def test_a_trial_that_no_longer_beats_is_begun_again_with_its_values_and_notes(
    address: str,
) -> None:
    storage = opened(address, grace=1)
    study = optuna.create_study(study_name="s", storage=storage.optuna)
    dead, alive, never_beat = study.ask(), study.ask(), study.ask()
    for trial in (dead, alive):
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("run_id", f"run-{trial.number}")
        storage.beat(trial)
    assert [t.number for t in storage.silent(study.get_trials())] == [never_beat.number]
    with storage.beating(alive):
        time.sleep(2.5)
        silent = storage.silent(study.get_trials())
    assert [t.number for t in silent] == [dead.number, never_beat.number]
    assert begin_again(study, silent[0])
    states = [t.state for t in study.trials]
    assert states == [
        TrialState.FAIL,
        TrialState.RUNNING,
        TrialState.RUNNING,
        TrialState.WAITING,
    ]
    again = study.ask()
    assert again.suggest_float("x", 0, 1) == dead.params["x"]
    assert again.user_attrs["run_id"] == "run-0"
    with pytest.raises(UpdateFinishedTrialError):
        storage.beat(dead)


def test_a_trial_is_begun_again_a_limited_number_of_times(address: str) -> None:
    storage = opened(address)
    study = optuna.create_study(study_name="s", storage=storage.optuna)
    study.enqueue_trial({"x": 0.25})
    for attempt in range(MAX_RETRIES + 1):
        trial = study.ask()
        assert (trial.number, trial.suggest_float("x", 0, 1)) == (attempt, 0.25)
        counts = count(study.get_trials())
        assert (counts.running, counts.failed) == (1, 0)
        assert begin_again(study, study.get_trials()[attempt]) == (attempt < MAX_RETRIES)
    last = study.get_trials()[-1]
    assert (first_number(last), history(last)) == (0, list(range(MAX_RETRIES)))
    assert count(study.get_trials()).failed == 1


def test_a_trial_keeps_what_a_warm_start_and_a_pruner_noted(address: str) -> None:
    """Optuna keeps both in attributes of its own, which a trial that is begun again must have."""
    storage = opened(address)
    study = optuna.create_study(
        study_name="s",
        storage=storage.optuna,
        direction="maximize",
        pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )
    study.enqueue_trial({"x": 0.25})
    killed_while_begun = study.ask()
    begin_again(study, study.get_trials()[killed_while_begun.number])
    assert study.ask().suggest_float("x", 0, 1) == 0.25
    first = study.ask()
    first.report(0.1, 1)
    assert not first.should_prune()
    begin_again(study, study.get_trials()[first.number])
    better = study.ask({})
    assert better.number == first.number + 1, "the retry"
    other = study.ask()
    other.report(0.9, 1)
    other.should_prune()
    better.report(0.1, 1)
    assert not better.should_prune(), "it has passed this epoch already"


def test_a_trial_that_has_just_ended_is_not_begun_again(address: str) -> None:
    study = optuna.create_study(study_name="s", storage=opened(address).optuna)
    trial = study.ask()
    (seen_running,) = study.get_trials()
    study.tell(trial, 1.0)
    assert begin_again(study, seen_running)
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE]


def test_the_clock_is_the_storages(address: str) -> None:
    assert opened(address).now() == pytest.approx(time.time(), abs=5)


def test_the_lock_lets_one_in_at_a_time(address: str) -> None:
    storage = opened(address)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with storage.locked():
                inside += 1
                most = max(most, inside)
                time.sleep(0.005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_killed_holder_gives_the_lock_back(address: str) -> None:
    storage = opened(address)
    code = (
        "import sys, time\nfrom ocp_mamba.sweep.storage import open_storage\n"
        f"s = open_storage(sys.argv[1], tracking_uri={TRACKING!r}, grace=60)\n"
        "with s.locked():\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    got = threading.Event()

    def wait() -> None:
        with storage.locked():
            got.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not got.wait(0.3)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert got.wait(20)


def test_workers_that_make_the_tables_at_once_do_not_collide(postgres: Postgres) -> None:
    url = postgres.create_database("at_once")
    code = (
        "import sys\nfrom ocp_mamba.sweep.storage import open_storage\n"
        f"open_storage(sys.argv[1], tracking_uri={TRACKING!r}, grace=60)\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [w.communicate()[1] for w in workers]
    assert [w.returncode for w in workers] == [0, 0, 0], said


def test_the_journal_lies_beside_mlflows_database(tmp_path: Path) -> None:
    assert default_journal(f"sqlite:///{tmp_path}/mlflow.db", Path("x")) == (
        tmp_path / "sweeps.journal"
    )
    assert default_journal("http://server:5000", tmp_path) == tmp_path / "sweeps.journal"


def test_mlflows_sqlite_file_is_refused(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(StorageError, match="MLflow's own database"):
        open_storage(str(tmp_path / "mlflow.db"), tracking_uri=uri, grace=60)
    mlflow.MlflowClient(uri).search_experiments()
    with pytest.raises(StorageError, match="is an SQLite database"):
        open_storage(str(tmp_path / "mlflow.db"), tracking_uri=TRACKING, grace=60)


def test_mlflows_postgres_database_is_refused_by_address_and_by_its_tables(
    postgres: Postgres,
) -> None:
    url = postgres.create_database("tracking")
    for other in (
        postgres.url("tracking", "postgresql+psycopg2"),
        postgres.url("tracking", host="localhost"),
    ):
        with pytest.raises(StorageError, match="MLflow's own database"):
            open_storage(url, tracking_uri=other, grace=60)
    postgres.execute("CREATE TABLE experiments (); CREATE TABLE latest_metrics ()", "tracking")
    with pytest.raises(StorageError, match="holds MLflow's tables") as error:
        open_storage(url, tracking_uri="http://server:5000", grace=60)
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://me:secret@host/db", "found mysql, wanted postgresql://"),
        ("sqlite:///x.db", "found sqlite, wanted postgresql://"),
        ("postgresql://me:secret@127.0.0.1:1/db", "storage postgresql://me:***@127.0.0.1:1/db"),
        ("postgresql+nodriver://me:secret@h/db", "postgresql+nodriver://me:***@h/db"),
        ("://", "not an address"),
    ],
)
def test_another_address_is_refused_without_its_password(address: str, message: str) -> None:
    with pytest.raises(StorageError) as error:
        opened(address)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("milk\nbread\n")
    with pytest.raises(StorageError, match=r"notes\.txt: not a journal"):
        opened(str(path))


def test_a_password_is_shown_nowhere() -> None:
    with pytest.raises(StorageError) as error:
        opened("mysql://me:hunter@h:1/db?password=hunter")
    assert "mysql://me:***@h:1/db?password=***" in str(error.value)
    with pytest.raises(StorageError) as error:
        opened("postgresql://me:hun:ter@h:x/db")
    assert "hun" not in str(error.value)
