"""One loaded version of a model: what it predicts, and the concepts near to that.

Shapes: B sequences, L positions, 768 the width of a concept vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mlflow.pyfunc import PyFuncModel
from torch import Tensor

from ocp_mamba.model.cache import InferenceCache
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.rollout import rollout
from ocp_mamba.service.concepts import Concepts

WARM_UP = ((1, 3), (1, 10), (8, 5))
"""Shapes ``(B, L)`` that a new version computes before it answers requests."""

PADDED_SHARE = 0.2
"""Sequences of different lengths are computed together while no more of it is padding."""


@dataclass(frozen=True)
class Context:
    """One sequence whose next vectors are wanted.

    Attributes:
        values: unit rows float32 ``(L, 768)``, or rows of the version's bank, int64 ``(L,)``.
        tmd: float32 ``(16,)`` for a model with TMD, else None.
        relations: float32 ``(L, 2)`` as `serving.request.read_relations`, or None.
    """

    values: np.ndarray
    tmd: np.ndarray | None = None
    relations: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Version:
    """A model with its name, in evaluation mode, and what it can be asked.

    Attributes:
        name: of the registered model, or of the file.
        version: of the registered model, or the first digits of the file's digest.
        model: computes on the CPU.
        concepts: its bank, or None where only vectors can be sent.
        pyfunc: what MLflow's scoring protocol is answered from; its signature is the version's.
    """

    name: str
    version: str
    model: OCPMambaLVM
    concepts: Concepts | None
    pyfunc: PyFuncModel | None = None

    @property
    def identity(self) -> dict[str, str]:
        """The part of an answer that says which version gave it."""
        return {"name": self.name, "version": self.version}

    @torch.inference_mode()
    def predict(self, contexts: Sequence[Context], steps: int) -> np.ndarray:
        """Return the next vectors of each sequence, float32 ``(B, steps, 768)`` unit rows."""
        out = np.empty((len(contexts), steps, self.model.config.d_vector), dtype=np.float32)
        for group in similar_lengths([len(c.values) for c in contexts]):
            vectors, tmd, lengths, known = self._tensors([contexts[i] for i in group])
            if steps == 1:
                out[group, 0] = self.model(vectors, tmd, lengths, **known).numpy()
            else:
                out[group] = rollout(self.model, vectors, steps, tmd, lengths, **known).numpy()
        return out

    def rows_of(self, context: Context) -> np.ndarray:
        """Return a sequence's vectors, float32 ``(L, 768)``."""
        if context.values.ndim == 2:
            return context.values
        assert self.concepts is not None
        return self.concepts.bank[context.values]

    def _tensors(
        self, contexts: Sequence[Context]
    ) -> tuple[Tensor, Tensor | None, Tensor | None, dict[str, Tensor]]:
        """The model's arguments for sequences: vectors, tmd, lengths (None if equal), relations."""
        lengths = [len(c.values) for c in contexts]
        shape = (len(contexts), max(lengths))
        vectors = np.zeros((*shape, self.model.config.d_vector), dtype=np.float32)
        for row, context in enumerate(contexts):
            vectors[row, : lengths[row]] = self.rows_of(context)
        known: dict[str, Tensor] = {}
        if any(c.relations is not None for c in contexts):
            relations = np.zeros((*shape, 2), dtype=np.float32)
            for row, context in enumerate(contexts):
                if context.relations is not None:
                    relations[row, : lengths[row]] = context.relations
            known["relations"] = torch.from_numpy(relations)
        tmd = None
        if self.model.config.d_tmd:
            tmd = torch.from_numpy(np.stack([c.tmd for c in contexts if c.tmd is not None]))
        padded = min(lengths) < shape[1]
        return torch.from_numpy(vectors), tmd, torch.tensor(lengths) if padded else None, known

    @torch.inference_mode()
    def begin(self, context: Context) -> tuple[InferenceCache, np.ndarray]:
        """Return the state after a sequence, and the vector that follows it, ``(768,)``."""
        vectors, tmd, _, known = self._tensors([context])
        cache = self.model.allocate_inference_cache(1)
        return cache, self.model.prefill(vectors, tmd, cache, **known).numpy()[0]

    @torch.inference_mode()
    def step(self, cache: InferenceCache, vector: np.ndarray, tmd: np.ndarray | None) -> np.ndarray:
        """Append a vector ``(768,)`` to a state in place; returns the next one, ``(768,)``."""
        codes = None if tmd is None else torch.from_numpy(tmd)[None]
        return self.model.step(torch.from_numpy(vector)[None], codes, cache).numpy()[0]

    def warm_up(self) -> None:
        """Compute a few predictions, so that the first requests find everything allocated."""
        rng = np.random.default_rng(0)
        c = self.model.config
        tmd = np.zeros(c.d_tmd, dtype=np.float32) if c.d_tmd else None
        for B, L in WARM_UP:
            rows = rng.standard_normal((L, c.d_vector)).astype(np.float32)
            predicted = self.predict([Context(rows, tmd)] * B, 2)
            if not np.isfinite(predicted).all():
                raise ValueError("its predictions are not finite numbers")
            if self.concepts is not None:
                self.concepts.nearest(predicted[:, 0], 1)


def similar_lengths(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of sequences to compute together, with little padding in each group."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    group: list[int] = []
    positions = 0
    for index in order:
        longest = lengths[index]
        whole = longest * (len(group) + 1)
        if group and (whole - positions - longest) > PADDED_SHARE * whole:
            yield group
            group, positions = [], 0
        group.append(index)
        positions += longest
    if group:
        yield group
