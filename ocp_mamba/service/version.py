"""One loaded version of a model: what it predicts, and the concepts near to that.

Shapes: B chains, L positions, 768 the width of a concept vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mlflow.models import Model
from torch import Tensor

from ocp_mamba.errors import RequestError
from ocp_mamba.model.cache import InferenceCache
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.text import TextPredictor

WARM_UP = ((1, 3), (1, 10), (16, 5))
"""Shapes ``(B, L)`` that a new version computes before it answers requests."""

PADDED_SHARE = 0.25
"""Chains of different lengths are computed together while no more of the positions is padding."""

MAX_POSITIONS = 1_024
"""Positions, padding included, that are computed at once, unless one chain alone has more."""


@dataclass(frozen=True)
class Chain:
    """One chain whose next concepts are wanted.

    Attributes:
        vectors: unit rows float32 ``(L, 768)``.
        tmd: float32 ``(16,)`` for a model with TMD, else None.
        norms: ``(L,)``, lengths of the vectors as they were sent; None for concepts.
    """

    vectors: np.ndarray
    tmd: np.ndarray | None = None
    norms: np.ndarray | None = None


@dataclass(frozen=True)
class Predicted:
    """What follows B chains; the last two are None where concepts were not asked for.

    Attributes:
        version: that computed it.
        vectors: unit rows float32 ``(B, steps, 768)``.
        scores: cosines float32 ``(B, steps, top_k)`` of the nearest concepts, best first.
        rows: their bank rows, int64 ``(B, steps, top_k)``.
    """

    version: Version
    vectors: np.ndarray
    scores: np.ndarray | None = None
    rows: np.ndarray | None = None

    def part(self, chains: slice, top_k: int) -> Predicted:
        """Return what follows some of the chains, with fewer concepts."""
        if self.scores is None or self.rows is None or not top_k:
            return Predicted(self.version, self.vectors[chains])
        scores, rows = self.scores[chains, :, :top_k], self.rows[chains, :, :top_k]
        return Predicted(self.version, self.vectors[chains], scores, rows)

    def next_of(self, chain: int, step: int) -> list[dict[str, object]]:
        """Return the concepts that follow a chain, with their scores, as the answer lists them."""
        if self.scores is None or self.rows is None:
            return []
        texts = self.version.words.vocabulary.texts
        return [
            {"concept": texts[row], "score": score}
            for row, score in zip(
                self.rows[chain, step].tolist(), self.scores[chain, step].tolist(), strict=True
            )
        ]


@dataclass(frozen=True, eq=False)
class Version:
    """A model with its name, in evaluation mode, and what it can be asked.

    Attributes:
        name: of the registered model, or of the file.
        version: of the registered model, or the first digits of the file's digest.
        model: computes on the CPU.
        text: the model with its bank, or None where only vectors can be sent.
        meta: its MLflow model, whose signature says what ``/invocations`` takes.
    """

    name: str
    version: str
    model: OCPMambaLVM
    text: TextPredictor | None = None
    meta: Model | None = None

    @property
    def identity(self) -> dict[str, str]:
        """The part of an answer that says which version gave it."""
        return {"name": self.name, "version": self.version}

    @property
    def words(self) -> TextPredictor:
        """The model with its bank.

        Raises:
            RequestError: this version has none.
        """
        if self.text is None:
            raise RequestError(
                f"{self.name} version {self.version} has no concepts, so it can neither read nor "
                "name them. Send vectors and ask for vectors, with top_k 0; or start the service "
                "with --data and the dataset file of the model"
            )
        return self.text

    @torch.inference_mode()
    def predict(self, chains: Sequence[Chain], steps: int = 1, top_k: int = 0) -> Predicted:
        """Return what follows some chains.

        After each step but the last the vector of its best concept is fed back, as in
        `TextPredictor.next_concepts`; the predicted vector itself where the version has no bank.

        Args:
            chains: of any lengths.
            steps: vectors ahead.
            top_k: concepts to find for each; 0 for none.
        """
        shape = len(chains), steps
        vectors = np.empty((*shape, self.model.config.d_vector), dtype=np.float32)
        k = min(top_k, len(self.words.bank)) if top_k else 0
        scores, rows = np.empty((*shape, k), np.float32), np.empty((*shape, k), np.int64)
        for group in like_lengths([len(chain.vectors) for chain in chains]):
            for step, predicted in enumerate(self._roll_out([chains[i] for i in group], steps)):
                vectors[group, step] = predicted
                if k:
                    scores[group, step], rows[group, step] = self.words.index.search(predicted, k)
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self.name} version {self.version} gave numbers that are not finite")
        return Predicted(self, vectors, scores, rows) if k else Predicted(self, vectors)

    def _roll_out(self, chains: Sequence[Chain], steps: int) -> Iterator[np.ndarray]:
        """The vectors ``(B, 768)`` that follow some chains, step by step."""
        vectors, tmd, lengths = self._tensors(chains)
        if steps == 1:
            yield self.model(vectors, tmd, lengths).numpy()
            return
        cache = self.model.allocate_inference_cache(len(chains))
        predicted = self.model.prefill(vectors, tmd, cache, lengths).numpy()
        yield predicted
        for _ in range(steps - 1):
            fed = torch.from_numpy(self.fed_back(predicted))
            predicted = self.model.step(fed, tmd, cache).numpy()
            yield predicted

    def fed_back(self, predicted: np.ndarray) -> np.ndarray:
        """Return what a rollout reads after predicting ``(B, 768)``: the best concepts' vectors."""
        if self.text is None:
            return predicted
        return self.text.bank[self.text.index.search(predicted, 1)[1][:, 0]]

    def _tensors(self, chains: Sequence[Chain]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The model's arguments: vectors, TMD, and lengths, which are None where all are equal."""
        lengths = [len(chain.vectors) for chain in chains]
        shape = len(chains), max(lengths), self.model.config.d_vector
        vectors = np.zeros(shape, dtype=np.float32)
        for row, chain in enumerate(chains):
            vectors[row, : lengths[row]] = chain.vectors
        tmd = None
        if self.model.config.d_tmd:
            tmd = torch.from_numpy(np.stack([c.tmd for c in chains if c.tmd is not None]))
        padded = min(lengths) < shape[1]
        return torch.from_numpy(vectors), tmd, torch.tensor(lengths) if padded else None

    @torch.inference_mode()
    def read(self, cache: InferenceCache, chain: Chain) -> np.ndarray:
        """Append a chain to the state of one sequence; returns what follows, ``(768,)``."""
        vectors, tmd, _ = self._tensors([chain])
        if len(chain.vectors) == 1:
            return self.model.step(vectors[:, 0], tmd, cache).numpy()[0]
        return self.model.prefill(vectors, tmd, cache).numpy()[0]

    def named(self, vector: np.ndarray, top_k: int) -> Predicted:
        """Return a predicted vector ``(768,)`` with the concepts near to it."""
        if not np.isfinite(vector).all():
            raise ValueError(f"{self.name} version {self.version} gave numbers that are not finite")
        if not top_k:
            return Predicted(self, vector[None, None])
        scores, rows = self.words.index.search(vector[None], top_k)
        return Predicted(self, vector[None, None], scores[None], rows[None])

    def warm_up(self) -> None:
        """Compute some predictions, so that the first requests find everything allocated.

        Raises:
            ValueError: its predictions are not finite.
        """
        rng, c = np.random.default_rng(0), self.model.config
        tmd = np.zeros(c.d_tmd, dtype=np.float32) if c.d_tmd else None
        for B, L in WARM_UP:
            rows = rng.standard_normal((L, c.d_vector)).astype(np.float32)
            self.predict([Chain(rows, tmd)] * B, steps=2, top_k=1 if self.text else 0)


def like_lengths(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of chains to compute together, with little padding in each group."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    group: list[int] = []
    positions = 0
    for index in order:
        length = lengths[index]
        whole = length * (len(group) + 1)
        padding = whole - positions - length
        if group and (padding > PADDED_SHARE * whole or whole > MAX_POSITIONS):
            yield group
            group, positions = [], 0
        group.append(index)
        positions += length
    if group:
        yield group
