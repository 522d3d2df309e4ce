"""Aliases: the order of their writes, interrupted at each of them, and many writers at once."""

from __future__ import annotations

import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from ocp_mamba.errors import EvidenceError, RegistryError
from ocp_mamba.tracking.registry import aliases
from ocp_mamba.tracking.registry.aliases import (
    ALIASES_LOCK,
    CHAMPION,
    PREVIOUS,
    PROMOTION_LOCK,
    aliases_of,
    locked,
    make_champion,
    roll_back,
    version_at,
)

NAME = "m"


@pytest.fixture
def versions(store: str, tmp_path: Path) -> list[str]:
    """Three versions without files; no alias."""
    client = MlflowClient()
    client.create_registered_model(NAME)
    made = [client.create_model_version(NAME, str(tmp_path)).version for _ in range(3)]
    return [str(version) for version in made]


class Killed(BaseException):
    """The process ends here."""


def killed_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """End the process, as it were, when an alias has been set so many times."""
    left = [writes]
    real = MlflowClient.set_registered_model_alias

    def set_alias(client: MlflowClient, *words: str) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(client, *words)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias)


def test_the_first_champion_has_no_previous(versions: list[str]) -> None:
    assert version_at(NAME, CHAMPION) is None
    make_champion(NAME, versions[0], instead_of=None)
    assert aliases_of(NAME) == {CHAMPION: "1"}
    make_champion(NAME, versions[0], instead_of="1")
    assert aliases_of(NAME) == {CHAMPION: "1"}


def test_a_champion_becomes_the_previous_one_and_comes_back(versions: list[str]) -> None:
    make_champion(NAME, "1", instead_of=None)
    make_champion(NAME, "2", instead_of="1")
    make_champion(NAME, "3", instead_of="2")
    assert aliases_of(NAME) == {CHAMPION: "3", PREVIOUS: "2"}
    assert roll_back(NAME) == ("2", "3")
    assert aliases_of(NAME) == {CHAMPION: "2", PREVIOUS: "3"}
    assert roll_back(NAME) == ("3", "2")


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_promotion_that_is_killed_leaves_a_champion(
    versions: list[str], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    make_champion(NAME, "1", instead_of=None)
    make_champion(NAME, "2", instead_of="1")
    with monkeypatch.context() as patch:
        killed_after(patch, writes)
        if writes == 2:
            make_champion(NAME, "3", instead_of="2")
        else:
            with pytest.raises(Killed):
                make_champion(NAME, "3", instead_of="2")
    found = aliases_of(NAME)
    assert found[CHAMPION] == ("3" if writes == 2 else "2")
    assert found[PREVIOUS] == ("1" if writes == 0 else "2")
    make_champion(NAME, "3", instead_of=found[CHAMPION])
    assert aliases_of(NAME) == {CHAMPION: "3", PREVIOUS: "2"}, "it can be run again"


@pytest.mark.parametrize("writes", [0, 1])
def test_a_rollback_that_is_killed_leaves_a_champion(
    versions: list[str], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    make_champion(NAME, "1", instead_of=None)
    make_champion(NAME, "2", instead_of="1")
    with monkeypatch.context() as patch:
        killed_after(patch, writes)
        with pytest.raises(Killed):
            roll_back(NAME)
    assert aliases_of(NAME)[CHAMPION] == ("2" if writes == 0 else "1")
    if writes == 1:  # it has taken effect, and a second one does not undo it
        with pytest.raises(RegistryError, match="are both version 1"):
            roll_back(NAME)
        assert aliases_of(NAME)[CHAMPION] == "1"


def test_there_is_a_champion_at_every_moment(
    versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_champion(NAME, "1", instead_of=None)
    seen: list[dict[str, str]] = []
    real = aliases.set_alias

    def watched(name: str, alias: str, version: str) -> None:
        seen.append(aliases_of(name))
        real(name, alias, version)
        seen.append(aliases_of(name))

    monkeypatch.setattr(aliases, "set_alias", watched)
    make_champion(NAME, "2", instead_of="1")
    roll_back(NAME)
    make_champion(NAME, "3", instead_of="1")
    assert len(seen) == 12
    assert all(CHAMPION in found for found in seen)


def test_a_champion_that_has_moved_since_is_not_replaced(versions: list[str]) -> None:
    make_champion(NAME, "1", instead_of=None)
    make_champion(NAME, "2", instead_of="1")
    with pytest.raises(EvidenceError, match="version 2, this decision was made against version 1"):
        make_champion(NAME, "3", instead_of="1")
    with pytest.raises(EvidenceError, match="against none"):
        make_champion(NAME, "3", instead_of=None)
    assert aliases_of(NAME) == {CHAMPION: "2", PREVIOUS: "1"}


def test_of_many_at_once_one_is_made_champion(versions: list[str]) -> None:
    """All decided against the same champion, so that only the first may replace it."""
    make_champion(NAME, "1", instead_of=None)
    outcomes: list[str] = []

    def promote(version: str) -> None:
        try:
            make_champion(NAME, version, instead_of="1")
            outcomes.append(version)
        except EvidenceError as error:
            outcomes.append(error.fault)

    threads = [threading.Thread(target=promote, args=(v,)) for v in ("2", "3", "2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("champion-moved") == 3
    (winner,) = (o for o in outcomes if o != "champion-moved")
    assert aliases_of(NAME) == {CHAMPION: winner, PREVIOUS: "1"}


def test_a_rollback_does_not_wait_for_a_promotion(versions: list[str]) -> None:
    make_champion(NAME, "1", instead_of=None)
    make_champion(NAME, "2", instead_of="1")
    with locked(NAME, PROMOTION_LOCK):
        assert roll_back(NAME) == ("1", "2")
        waiting = locked(NAME, PROMOTION_LOCK, seconds=0.1)
        with pytest.raises(RegistryError, match="another process has held the lock"), waiting:
            raise AssertionError
    with locked(NAME, PROMOTION_LOCK, seconds=0.1):
        pass


def test_nothing_to_roll_back_to_is_said(versions: list[str]) -> None:
    with pytest.raises(RegistryError, match="no version has the alias champion"):
        roll_back(NAME)
    make_champion(NAME, "1", instead_of=None)
    with pytest.raises(RegistryError, match="no version has the alias previous"):
        roll_back(NAME)
    with pytest.raises(RegistryError, match="registered model absent"):
        roll_back("absent")


def test_a_rollback_is_few_requests(versions: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are counted, because seconds are those of the machine and its store."""
    make_champion(NAME, "1", instead_of=None)
    make_champion(NAME, "2", instead_of="1")
    asked: list[str] = []
    client = type(MlflowClient()._get_registry_client())
    for name in [name for name in dir(client) if not name.startswith("_")]:
        real = getattr(client, name)
        if callable(real):

            def counted(*words: Any, real: Any = real, name: str = name, **more: Any) -> Any:
                asked.append(name)
                return real(*words, **more)

            monkeypatch.setattr(client, name, counted)
    roll_back(NAME)
    reads = asked.count("get_registered_model")  # MLflow reads once more for each alias
    assert reads <= 3
    assert sorted(asked)[reads:] == ["set_registered_model_alias"] * 2


def test_who_refuses_says_what_is_there_and_what_to_do(versions: list[str]) -> None:
    way_out = "so there is nothing to roll back to; `ocp-mamba promote VERSION` makes"
    with pytest.raises(RegistryError) as refused:
        roll_back(NAME)
    assert str(refused.value) == f"m: no version has the alias champion, {way_out} a champion"
    make_champion(NAME, "1", instead_of=None)
    with pytest.raises(RegistryError) as refused:
        roll_back(NAME)
    assert str(refused.value) == f"m: no version has the alias previous, {way_out} a champion"
    with pytest.raises(EvidenceError) as moved:
        make_champion(NAME, "2", instead_of=None)
    assert moved.value.fault == "champion-moved"
    assert str(moved.value) == (
        "champion-moved: m: the champion is version 1, this decision was made against none; run "
        "the promotion again"
    )
    MlflowClient().set_registered_model_alias(NAME, "previous", "1")
    with pytest.raises(RegistryError) as refused:
        roll_back(NAME)
    assert str(refused.value) == (
        f"m: champion and previous are both version 1, {way_out} another champion"
    )


def held(name: str, what: str) -> bool:
    """Whether somebody holds a lock."""
    try:
        with locked(name, what, seconds=0.05):
            return False
    except RegistryError:
        return True


def test_a_promotion_and_a_rollback_move_aliases_under_their_lock(
    versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moved = aliases.set_alias, []

    def set_alias(name: str, alias: str, version: str) -> None:
        moved.append(alias)
        assert held(NAME, ALIASES_LOCK)
        real(name, alias, version)

    monkeypatch.setattr(aliases, "set_alias", set_alias)
    make_champion(NAME, versions[0], instead_of=None)
    make_champion(NAME, versions[1], instead_of=versions[0])
    assert moved == [CHAMPION, PREVIOUS, CHAMPION]
    roll_back(NAME)
    assert moved[3:] == [CHAMPION, PREVIOUS]


def test_the_folder_of_locks_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 4711)
    with locked(NAME, ALIASES_LOCK):
        assert (tmp_path / "ocp_mamba-4711").is_dir()
    monkeypatch.delattr("os.getuid")
    with locked(NAME, ALIASES_LOCK):
        assert (tmp_path / "ocp_mamba-0").is_dir(), "a system without user numbers"


def test_a_lock_is_of_one_model_one_purpose_and_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "new" / "deep"))
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/a.db")
    with locked(NAME, ALIASES_LOCK):
        assert held(NAME, ALIASES_LOCK)
        assert not held(NAME, PROMOTION_LOCK)
        assert not held("other", ALIASES_LOCK)
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/b.db")
        assert not held(NAME, ALIASES_LOCK)
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/a.db")
        with pytest.raises(RegistryError) as refused, locked(NAME, ALIASES_LOCK, seconds=0.05):
            raise AssertionError
        [folder] = (tmp_path / "new" / "deep").iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.name == f"ocp_mamba-{aliases._user_number()}"
        [file] = [path for path in folder.iterdir() if str(path) in str(refused.value)]
        assert file.name.startswith("aliases-")
        assert str(refused.value) == (
            f"m: another process has held the lock {file} for 0 s; wait for it, or end it"
        )
    assert not held(NAME, ALIASES_LOCK)
    with pytest.raises(KeyError), locked(NAME, ALIASES_LOCK):
        raise KeyError
    assert not held(NAME, ALIASES_LOCK), "an error in the block lets it go"
