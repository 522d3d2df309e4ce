"""The PostgreSQL fixture that other tests stand on: a real server that asks for a password."""

from __future__ import annotations

from pathlib import Path

import postgres as module
import psycopg
import pytest
from postgres import PASSWORD, USER, Postgres


def test_a_database_of_its_own_and_a_password(postgres: Postgres) -> None:
    url = postgres.create_database("fixture")
    plain = url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(plain) as connection:
        assert connection.execute("SELECT current_database(), current_user").fetchone() == (
            "fixture",
            USER,
        )
    assert PASSWORD not in url, "it has characters that an address must quote"
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(plain.replace("pass-word", "other"))


def test_data_outlives_a_kill(postgres: Postgres) -> None:
    postgres.create_database("outlives")
    postgres.execute("CREATE TABLE t AS SELECT 7 AS n", "outlives")
    postgres.kill()
    postgres.start()
    assert postgres.execute("SELECT n FROM t", "outlives") == [(7,)]


def test_programs_are_found_off_the_path_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = module.programs()
    if found is None:
        pytest.skip(module.NOT_FOUND)
    assert (found / "initdb").is_file()
    monkeypatch.setenv("PATH", str(found))
    assert module.programs() is not None
    monkeypatch.setattr(module, "WANTED", ("initdb", "no-such-program"))
    assert module.programs() is None


def test_the_folder_goes_with_the_server(postgres: Postgres) -> None:
    with Postgres(Path(str(module.programs()))) as other:
        assert other.execute("SELECT 1") == [(1,)]
        folder = other.folder
        assert folder.is_dir()
    assert not folder.exists()
