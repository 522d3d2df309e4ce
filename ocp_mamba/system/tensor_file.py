"""Files of tensors and plain values, as `torch.save` writes them, with a digest of their bytes.

Torch compares no checksum when it reads, so a flipped bit becomes another weight. The digest is the
comment of the zip that the file is; `torch.load` reads such a file as any other. Before torch reads
a file, what it declares is checked: torch would inflate records, call what the pickle names among
the functions that it allows, and read past the end of a record for a storage that is too large.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from ocp_mamba.errors import CheckpointError, first_line, shown
from ocp_mamba.system.files import atomic_write

MARK = b"ocp_mamba sha256 "
COMMENT_BYTES = len(MARK) + 64
LENGTH_FIELD = 2
"""Bytes of a zip's last field, the length of its comment, which torch writes as 0."""

PICKLED = "data.pkl"
MAX_PICKLE_BYTES = 1 << 24
MAX_VALUES, MAX_DEPTH = 2_000_000, 32
"""Values in a file, and how deeply they are nested. A pickle can hold one list in many places."""

NAMING = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
ALLOWED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")
"""Operations of a pickle that name a class or a function, and what they may name."""


class _Hashing:
    """Hashes what is written into a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write_tensors(path: Path, content: Any) -> None:
    """Write tensors and plain values, with their digest; an older file is replaced whole.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    with atomic_write(path) as file:
        hashing = _Hashing(file)
        torch.save(content, cast(IO[bytes], hashing))
        file.seek(-LENGTH_FIELD, os.SEEK_END)
        comment = MARK + hashing.digest.hexdigest().encode()
        file.write(COMMENT_BYTES.to_bytes(LENGTH_FIELD, "little") + comment)


def read_tensors(path: Path) -> tuple[Any, bool]:
    """Read a file of tensors and plain values; no code in it is run.

    Returns:
        Its content, in memory of its own, and whether the file has a digest.

    Raises:
        CheckpointError: the file cannot be read, its content is not that of the digest, or it holds
            anything but tensors and plain values; names the file and, if it is known, the key.
    """
    try:
        has_digest = _compare_digest(path)
        _check_records(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path}: there is no such file") from error
    except Exception as error:  # of a damaged file zipfile and torch raise anything
        raise CheckpointError(
            f"checkpoint {path}: not readable with weights_only=True "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return _Copier(path).copy(content, ()), has_digest


def _compare_digest(path: Path) -> bool:
    """Compare a file with its digest; returns whether it has one."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise CheckpointError(f"checkpoint {path}: the file is empty")
        left = size - COMMENT_BYTES - LENGTH_FIELD
        if left < 0:
            return False
        file.seek(left)
        stated = file.read().removeprefix(COMMENT_BYTES.to_bytes(LENGTH_FIELD, "little") + MARK)
        if len(stated) != 64:
            return False
        file.seek(0)
        digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
        while left:
            read = file.readinto(block[: min(left, len(block))])
            if not read:
                raise OSError("the file became shorter while it was read")
            digest.update(block[:read])
            left -= read
        digest.update(bytes(LENGTH_FIELD))
    if digest.hexdigest().encode() != stated:
        raise CheckpointError(
            f"checkpoint {path}: its content is not that of its digest: the file was damaged or "
            "edited after it was written; copy it again, or go back to another one"
        )
    return True


def _check_records(path: Path) -> None:
    """Refuse a zip with compressed or doubled records, and a pickle that names anything else."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = [record.filename for record in records]
        plain = all(
            record.compress_type == zipfile.ZIP_STORED
            and record.file_size == record.compress_size
            and not record.flag_bits & 1
            for record in records
        )
        if not plain or len(set(names)) < len(names):
            raise CheckpointError(
                f"checkpoint {path}: it has compressed or doubled records, which torch does not "
                "write"
            )
        for record in records:
            if record.filename.rpartition("/")[2] == PICKLED:
                size = record.file_size
                if size > MAX_PICKLE_BYTES:
                    raise CheckpointError(
                        f"checkpoint {path}: its plain values take {size:,} bytes, "
                        f"{MAX_PICKLE_BYTES:,} at most wanted"
                    )
                _check_names(path, archive.read(record))


def _check_names(path: Path, pickled: bytes) -> None:
    for operation, argument, _ in pickletools.genops(pickled):
        allowed = operation.name == "GLOBAL" and ALLOWED.fullmatch(str(argument))
        if operation.name in NAMING and not allowed:
            raise CheckpointError(
                f"checkpoint {path}: not readable with weights_only=True: it names "
                f"{shown(argument)}, and tensors and plain values are all that it may hold"
            )


class _Copier:
    """Copies values out of a mapped file, once they are known to be plain."""

    def __init__(self, path: Path) -> None:
        self._path, self._left = path, MAX_VALUES

    def copy(self, value: Any, place: tuple[Any, ...]) -> Any:
        """Return a copy of a value, which stands under the keys ``place``."""
        self._left -= 1
        if self._left < 0 or len(place) > MAX_DEPTH:
            self._refuse(place, "there are too many values, or they are nested too deeply")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str | int):
                    self._refuse(place, f"the key {shown(key)} is no text and no number")
            return {key: self.copy(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.copy(item, (*place, i)) for i, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, Tensor):
            return self._copy_tensor(value, place)
        if value is None or isinstance(value, str | int | float | bool):
            return value
        return self._refuse(place, f"a {type(value).__name__} is no plain value")

    def _copy_tensor(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        plain = tensor.device.type == "cpu" and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or tensor.is_complex():
            self._refuse(place, "a plain tensor in memory wanted")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            self._refuse(
                place,
                f"a tensor {tuple(tensor.shape)} found, of which the file holds "
                f"{tensor.untyped_storage().nbytes():,} bytes",
            )
        return tensor.detach().clone()

    def _refuse(self, place: tuple[Any, ...], why: str) -> Any:
        key = shown(".".join(map(str, place)))
        raise CheckpointError(f"checkpoint {self._path}: key {key}: {why}")
