"""The aliases of a registered model, and the order in which they are moved.

``champion`` is what is served, ``previous`` what was served before it, ``candidate`` the training
that may become champion. MLflow sets one alias at a time and has no transaction over two, so the
order of the writes keeps a champion at every moment: an alias is only ever set, never deleted.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ocp_mamba.errors import EvidenceError, RegistryError, first_line

MODEL_NAME = "ocp-mamba-lvm"
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"

ALIASES_LOCK, PROMOTION_LOCK = "aliases", "promotion"
"""The first is held while aliases are moved; the second for a whole promotion, which may take
minutes, and a rollback does not wait for that."""
LOCK_SECONDS = 60.0


def aliases_of(name: str) -> dict[str, str]:
    """Return the version of each alias of a registered model.

    Raises:
        RegistryError: there is no such registered model, or the store does not answer.
    """
    try:
        found = mlflow.MlflowClient().get_registered_model(name).aliases
    except MlflowException as error:
        raise RegistryError(f"registered model {name}: {first_line(error)}") from error
    return {alias: str(version) for alias, version in found.items()}


def version_at(name: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias names, or None where there is no such alias."""
    number = aliases_of(name).get(alias)
    return None if number is None else mlflow.MlflowClient().get_model_version(name, number)


def set_alias(name: str, alias: str, version: str) -> None:
    """Move one alias to a version; MLflow does it in one transaction."""
    mlflow.MlflowClient().set_registered_model_alias(name, alias, version)


def make_champion(name: str, version: str, *, instead_of: str | None) -> None:
    """Make a version the champion, and the champion so far the previous one.

    ``previous`` is set first. Interrupted between the two writes, the champion is the one it was.

    Args:
        name: of the registered model.
        version: the new champion.
        instead_of: the champion that the decision rests on; None for none.

    Raises:
        EvidenceError: ``champion-moved``, another version has become champion since.
    """
    with locked(name, ALIASES_LOCK):
        champion = aliases_of(name).get(CHAMPION)
        if champion != instead_of:
            raise EvidenceError(
                "champion-moved",
                f"{name}: the champion is {_words(champion)}, this decision was made against "
                f"{_words(instead_of)}; run the promotion again",
            )
        if champion is not None and champion != version:
            set_alias(name, PREVIOUS, champion)
        set_alias(name, CHAMPION, version)


def roll_back(name: str) -> tuple[str, str]:
    """Swap ``champion`` and ``previous``; no model is loaded.

    ``champion`` is set first. Interrupted between the two writes, the rollback has taken effect,
    and both aliases name the same version.

    Returns:
        The new champion and the new previous version.

    Raises:
        RegistryError: there is nothing to roll back to.
    """
    with locked(name, ALIASES_LOCK):
        aliases = aliases_of(name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if champion is None or previous is None:
            missing = CHAMPION if champion is None else PREVIOUS
            raise RegistryError(
                f"{name}: no version has the alias {missing}, so there is nothing to roll back to; "
                "`ocp-mamba promote VERSION` makes a champion"
            )
        if champion == previous:
            raise RegistryError(
                f"{name}: {CHAMPION} and {PREVIOUS} are both version {champion}, so there is "
                "nothing to roll back to; `ocp-mamba promote VERSION` makes another champion"
            )
        set_alias(name, CHAMPION, previous)
        set_alias(name, PREVIOUS, champion)
    return previous, champion


@contextmanager
def locked(name: str, what: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock of a registered model among the processes of one user on this machine.

    Args:
        name: of the registered model.
        what: `ALIASES_LOCK` or `PROMOTION_LOCK`.
        seconds: how long to wait for it.

    Raises:
        RegistryError: another process held it all the time.
    """
    key = hashlib.sha256(f"{mlflow.get_tracking_uri()} {name} {what}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"ocp_mamba-{_user_number()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(folder / f"{what}-{key}.lock", timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise RegistryError(
            f"{name}: another process has held the lock {lock.lock_file} for {seconds:.0f} s; "
            "wait for it, or end it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _user_number() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _words(version: str | None) -> str:
    return "none" if version is None else f"version {version}"
