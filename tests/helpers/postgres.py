"""A real PostgreSQL server for tests, in a folder of its own, on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from servers import free_port

START_SECONDS = 180
USER, PASSWORD = "tester", "pass-word:of@tests"
WANTED = ("initdb", "postgres")
NOT_FOUND = "no PostgreSQL server here (initdb, postgres): apt-get install postgresql"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, or None. Debian keeps it off the PATH."""
    found = [Path(p).resolve().parent for name in WANTED if (p := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in found if all((f / name).is_file() for name in WANTED)), None)


def demoted() -> dict[str, Any]:
    """Arguments of `subprocess` for another user where this one is root, whom PostgreSQL refuses.

    Raises:
        RuntimeError: this is root, and there is no user to become.
    """
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")


class Postgres:
    """A server that asks for a password; data is lost with it. Use as a context manager."""

    def __init__(self, bin_folder: Path) -> None:
        self.port = free_port()
        self._bin = bin_folder
        self._as = demoted()
        self._process: subprocess.Popen[bytes] | None = None
        # not pytest's folder, which only its owner may enter
        self.folder = Path(tempfile.mkdtemp(prefix="ocp-pg-"))
        self.log = self.folder / "server.log"

    def __enter__(self) -> Postgres:
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str, scheme: str = "postgresql+psycopg", host: str = "") -> str:
        """SQLAlchemy's address of a database."""
        password = PASSWORD.replace(":", "%3A").replace("@", "%40")
        return f"{scheme}://{USER}:{password}@{host or '127.0.0.1'}:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Make an empty database; returns its `url`."""
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement outside a transaction; returns its rows."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=PASSWORD,
            dbname=database,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._bin / "postgres", "-D", self.folder / "data", "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                    "-c", "fsync=off", "-c", "full_page_writes=off",
                ],
                stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self._as,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process.poll() is None, self.log.read_text()
            try:
                self.execute("SELECT 1")
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """End the server at once; `start` brings it back with its data."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # its children end with it
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None

    def _initialise(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD + "\n")
        if self._as:
            for path in (self.folder, password):
                os.chown(path, self._as["user"], self._as["group"])
        subprocess.run(
            [
                self._bin / "initdb", "-D", self.folder / "data", "-U", USER, "--no-sync",
                "--auth=scram-sha-256", "--pwfile", password, "--encoding=UTF8", "--no-locale",
            ],
            check=True, capture_output=True, cwd=self.folder, **self._as,
        )  # fmt: skip
