"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path | str, *, mode: int | None = None) -> Iterator[IO[bytes]]:
    """Open a new file that replaces ``path`` when the block ends without an error.

    The content goes to a temporary file in the same folder. It is on the disk before it takes the
    name ``path``, so a crash leaves the older file or the new one, never a part. If the block
    raises, ``path`` stays as it was and the temporary file is removed.

    Args:
        path: the file to write; its folder must exist.
        mode: the new file's permissions, such as ``0o600``; None for those that are usual.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
            sync(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_files(folder: Path, name: str = "*") -> list[Path]:
    """Return the temporary files of `atomic_write` in a folder.

    A call that was killed leaves its file there for ever; those of living processes are among them.

    Args:
        folder: where to look.
        name: of the file that was to be written; ``*`` for any.
    """
    return sorted(folder.glob(f".{name if name == '*' else glob.escape(name)}.*.part"))


def sync(file: IO[bytes]) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, on systems that can sync a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
