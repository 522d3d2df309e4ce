"""Run a team's tracking server on one machine: MLflow with basic auth, PostgreSQL, artifact proxy.

``start`` makes what is missing (a database cluster, passwords, a secret key) in a folder, starts
both servers and ends both on Ctrl-C or SIGTERM. ``user`` adds a person. No password is printed,
logged or put on a command line: PostgreSQL's is in a pgpass file, MLflow's are in its environment,
and the administrator's is in a file that only its owner can read.
"""

from __future__ import annotations

import argparse
import base64
import getpass
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ADMIN, DATABASE_USER = "admin", "mlflow"
DATABASES = ("mlflow", "mlflow_auth")
START_SECONDS, STOP_SECONDS = 120, 30
AUTH_CONFIG = """[mlflow]
default_permission = READ
database_uri = {uri}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


class ServerError(Exception):
    """Something is missing or did not start; the message says what to do."""


@dataclass(frozen=True)
class Layout:
    """What is kept where in the server's folder."""

    root: Path

    def secret(self, name: str) -> str:
        """Return a secret, made at the first call; only the owner can read its file."""
        path = self.root / "secrets" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32) + "\n")
        return path.read_text().strip()

    def log(self, name: str) -> Path:
        """Return the path of a server's log."""
        return self.root / f"{name}.log"

    @property
    def address(self) -> Path:
        """Where the URL of the running server is."""
        return self.root / "url"


def main() -> None:
    """Parse the command line and run ``start`` or ``user``."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python scripts/server.py start; then, in another shell: "
        "python scripts/server.py user alice",
    )
    parser.add_argument("--folder", type=Path, default=Path("server"), help="default: server")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="start the server; Ctrl-C ends it")
    starting.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    starting.add_argument("--port", type=int, default=5000)
    starting.add_argument("--workers", type=int, default=2, help="MLflow's processes")
    starting.add_argument("--allowed-hosts", help="host names that other machines use for it")
    adding = commands.add_parser("user", help="add a user of the running server")
    adding.add_argument("name")
    adding.add_argument(
        "--change", action="store_true", help="give an existing user a new password"
    )
    options = parser.parse_args()
    try:
        if options.command == "start":
            start(Layout(options.folder.absolute()), options)
        else:
            user(Layout(options.folder.absolute()), options.name, change=options.change)
    except ServerError as error:
        sys.exit(f"server: {error}")


def say(message: str) -> None:
    print(f"server: {message}", flush=True)


def start(layout: Layout, options: argparse.Namespace) -> None:
    """Start PostgreSQL and MLflow, and end both on a signal or when one of them ends.

    Raises:
        ServerError: a program or a package is missing, or a server does not start.
    """
    require_packages()
    require_port(options.host, options.port)
    programs = postgres_programs()
    layout.root.mkdir(parents=True, exist_ok=True)
    with ending_on_signals() as told_to_end, postgres(layout, programs) as (database, port):
        make_databases(layout, port)
        with tracking_server(layout, port, options) as mlflow:
            url = f"http://{options.host}:{options.port}"
            wait_until(lambda: answers(url), mlflow, layout.log("mlflow"), told_to_end)
            if not told_to_end():
                layout.address.write_text(url + "\n")
                say(f"ready at {url}, logs in {layout.root}; Ctrl-C ends it")
                say(f"the password of {ADMIN} is in {layout.root / 'secrets' / 'admin.password'}")
            while not told_to_end():
                for name, process in {"postgres": database, "mlflow": mlflow}.items():
                    if process.poll() is not None:
                        raise ServerError(f"{name} has ended:\n{tail(layout.log(name))}")
                time.sleep(0.2)
    layout.address.unlink(missing_ok=True)
    say("ended")


def require_packages() -> None:
    """Refuse to start without the packages of the extra ``server``."""
    for package in ("psycopg", "flask_wtf"):
        try:
            __import__(package)
        except ImportError as error:
            raise ServerError(f"{error}; pip install -e '.[server]'") from error


def postgres_programs() -> Path:
    """Return the folder of initdb and postgres. Debian keeps it off the PATH."""
    found = [Path(p).resolve().parent for p in (shutil.which("initdb"),) if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise ServerError("no PostgreSQL here (initdb, postgres): apt-get install postgresql")


def demoted() -> dict[str, Any]:
    """Return `subprocess` arguments for another user if this is root: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError as error:
        raise ServerError("PostgreSQL does not run as root; become another user") from error
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def postgres(layout: Layout, programs: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run PostgreSQL on a free port that only this machine reaches; make its cluster if needed."""
    identity, port = demoted(), free_port()
    data = layout.root / "postgres"
    if not (data / "PG_VERSION").exists():
        say("making a database cluster")
        initialize(layout, programs, data, identity)
    command = [programs / "postgres", "-D", data, "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with layout.log("postgres").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=data, start_new_session=True, **identity
        )
    try:
        wait_until(
            lambda: can_connect(layout, port), process, layout.log("postgres"), lambda: False
        )
        yield process, port
    finally:
        end(process, signal.SIGINT)  # its fast shutdown


def initialize(layout: Layout, programs: Path, data: Path, identity: dict[str, Any]) -> None:
    """Make a cluster with one user, who needs a password on this machine too."""
    data.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        password = Path(temporary) / "password"
        password.touch(mode=0o600)
        password.write_text(layout.secret("database.password") + "\n")
        for path in (data, Path(temporary), password):
            if identity:
                layout.root.chmod(0o711)  # so that another user can enter it
                os.chown(path, identity["user"], identity["group"])
        command = [programs / "initdb", "-D", data, "-U", DATABASE_USER, "--pwfile", password]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **identity)
    if done.returncode:
        raise ServerError(
            f"initdb failed in {data}: {done.stderr.strip()}; PostgreSQL's user must be able to "
            "enter every folder above it: choose another --folder"
        )


def connect(layout: Layout, port: int) -> Any:
    """Open a connection to PostgreSQL's own database, in autocommit."""
    import psycopg

    return psycopg.connect(
        host="127.0.0.1", port=port, user=DATABASE_USER, dbname="postgres", autocommit=True,
        password=layout.secret("database.password"),
    )  # fmt: skip


def can_connect(layout: Layout, port: int) -> bool:
    import psycopg

    try:
        connect(layout, port).close()
    except psycopg.OperationalError:
        return False
    return True


def make_databases(layout: Layout, port: int) -> None:
    """Make MLflow's databases where they are missing, and the file with their password."""
    with connect(layout, port) as connection:
        rows = connection.execute("SELECT datname FROM pg_database").fetchall()
        for name in DATABASES:
            if (name,) not in rows:
                connection.execute(f'CREATE DATABASE "{name}"')
    passwords = layout.root / "secrets" / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(f"127.0.0.1:*:*:{DATABASE_USER}:{layout.secret('database.password')}\n")


@contextmanager
def tracking_server(
    layout: Layout, port: int, options: argparse.Namespace
) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow with basic auth; it reads every secret from its environment."""
    tracking, auth = (
        f"postgresql+psycopg://{DATABASE_USER}@127.0.0.1:{port}/{name}" for name in DATABASES
    )
    (config := layout.root / "basic_auth.ini").write_text(AUTH_CONFIG.format(uri=auth, admin=ADMIN))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    environment = os.environ | {
        "PGPASSFILE": str(layout.root / "secrets" / "pgpass"),
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": layout.secret("admin.password"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": layout.secret("flask.key"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--backend-store-uri", tracking, "--serve-artifacts"]
    command += ["--artifacts-destination", str(layout.root / "artifacts")]
    command += ["--host", options.host, "--port", str(options.port)]
    command += ["--workers", str(options.workers)]
    if options.allowed_hosts:
        command += ["--allowed-hosts", options.allowed_hosts]
    say("starting MLflow")
    with layout.log("mlflow").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=layout.root,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        end(process, signal.SIGTERM)


def user(layout: Layout, name: str, *, change: bool) -> None:
    """Add a user of the running server, or change a user's password.

    The password is asked for; where there is no terminal, it is the first line of standard input.

    Raises:
        ServerError: the server does not run here or refuses, and what it said.
    """
    if not layout.address.exists():
        raise ServerError(f"no server runs in {layout.root}; start it, or name another --folder")
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password for {name}: ")
    else:
        password = sys.stdin.readline().rstrip("\n")
    task, method = ("update-password", "PATCH") if change else ("create", "POST")
    credentials = f"{ADMIN}:{layout.secret('admin.password')}".encode()
    request = urllib.request.Request(
        f"{layout.address.read_text().strip()}/api/2.0/mlflow/users/{task}",
        data=json.dumps({"username": name, "password": password}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(credentials).decode()}",
        },
        method=method,
    )
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        hint = "; --change gives an existing user a new password" if not change else ""
        raise ServerError(f"user {name}: {message_of(error)}{hint}") from error
    except OSError as error:
        raise ServerError(f"the server does not answer: {error}") from error
    say(f"{'changed' if change else 'added'} user {name}")


def message_of(error: urllib.error.HTTPError) -> str:
    """Return MLflow's reason for a refusal, without the database's part, which has hashes."""
    said = error.read().decode(errors="replace")
    try:
        return str(json.loads(said)["message"]).split(" Error:")[0]
    except (ValueError, KeyError, TypeError):
        return str(error)


@contextmanager
def ending_on_signals() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C and SIGTERM end nothing; the callable says whether one came."""
    told: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        told.append(signum)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(told)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def wait_until(
    ready: Callable[[], bool],
    process: subprocess.Popen[bytes],
    log: Path,
    told_to_end: Callable[[], bool],
) -> None:
    """Wait for a server that was just started.

    Raises:
        ServerError: it ended, or was not ready in time; with the end of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not (told_to_end() or ready()):
        if process.poll() is not None:
            raise ServerError(f"{log.stem} did not start:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"{log.stem} was not ready in {START_SECONDS} s:\n{tail(log)}")
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def end(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    """Send a server a signal to end; kill it and its children if it does not end."""
    if process.poll() is None:
        process.send_signal(signum)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def require_port(host: str, port: int) -> None:
    """Refuse to start where another server listens."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as error:
            raise ServerError(f"port {port} of {host}: {error}; choose another --port") from error


if __name__ == "__main__":
    main()
