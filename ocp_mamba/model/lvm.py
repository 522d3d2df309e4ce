"""`OCPMambaLVM`: concept vectors in, the next concept vector out, by a stack of Mamba-2 layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.kernels.cosine import normalize
from ocp_mamba.model import linear, rollout
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.cache import InferenceCache
from ocp_mamba.model.conditioning import RelationAdapter, check_lengths, check_relations
from ocp_mamba.model.mamba2 import Mamba2Layer, RMSNorm
from ocp_mamba.model.memory_head import MemoryHead


class OCPMambaLVM(NextVectorModel):
    """Next-vector predictor: Mamba-2 layers between concept vectors.

    Inputs may have any length but zero: only their direction counts. Predictions are unit rows.
    When ``d_model`` is not the vectors' width, a linear ``input`` maps to it.

    A model that knows relations adds to each position what it makes of the relation by which that
    position follows the one before it: never of the relation to what it is to predict. An unknown
    relation adds nothing, and before training none does.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        """Create a model with freshly drawn weights (torch's global generator)."""
        super().__init__()
        self.config = c = config or ModelConfig()
        self.d_tmd = c.d_tmd
        self.n_relations = len(c.relations)
        self.input = nn.Identity() if c.d_model == c.d_vector else nn.Linear(c.d_vector, c.d_model)
        self.tmd_adapter = nn.Linear(c.d_tmd, c.d_model) if c.d_tmd else None
        self.layers = nn.ModuleList(Mamba2Layer(c) for _ in range(c.n_layers))
        self.norm_f = RMSNorm(c.d_model)
        self.output = nn.Linear(c.d_model, c.d_vector)
        self.memory_head = MemoryHead(c) if c.n_memory else None
        for linear in (self.input, self.tmd_adapter, self.output):
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
        # drawn last: the other weights are those of a model without
        self.relations = RelationAdapter(c) if c.relations else None

    def forward(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None = None,
        lengths: Tensor | None = None,
        relations: Tensor | None = None,
    ) -> Tensor:
        """Predict the vector that follows each sequence.

        Args:
            seq_vectors: ``(B, L, 768)``, right-padded.
            tmd: ``(B, 16)`` for a model with TMD conditioning, else None.
            lengths: ``(B,)`` valid positions of each row, 1..L; None means L for all.
            relations: as in `predict_all`.

        Returns:
            ``(B, 768)`` unit rows, from each row's last valid position.

        Raises:
            ValueError: a shape, a length or the presence of ``tmd`` does not fit the model.
        """
        predictions = self.predict_all(seq_vectors, tmd, relations)
        if lengths is None:
            return predictions[:, -1]
        check_lengths(lengths, *seq_vectors.shape[:2])
        return predictions[torch.arange(len(lengths), device=lengths.device), lengths.long() - 1]

    def predict_all(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, relations: Tensor | None = None
    ) -> Tensor:
        """Predict the next vector at every position in one causal pass.

        Args:
            seq_vectors: ``(B, L, 768)``, right-padded; position t sees positions <= t only.
            tmd: ``(B, 16)`` for a model with TMD conditioning, else None.
            relations: ``(B, L, 2)``, by which relation each position follows the one before it (its
                number, 0 for unknown) and how sure that is (0..1); None where all are unknown.

        Returns:
            ``(B, L, 768)`` unit rows; row t predicts the vector of position t + 1.

        Raises:
            ValueError: a shape or the presence of ``tmd`` does not fit the model.
        """
        return self.conclude(self.predict_members(seq_vectors, tmd, relations))

    def predict_members(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, relations: Tensor | None = None
    ) -> Tensor:
        """Return what each of M members predicts, ``(M, B, L, 768)`` unit rows, for training.

        Arguments and errors are `predict_all`'s. Members are taught apart, each by its own loss:
        where they have learnt the same they agree, elsewhere their mean hedges.
        Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation
        using Deep Ensembles", 2017; here the members share the output layer.
        """
        self._check(seq_vectors, tmd, relations)
        embedded = self.embed(seq_vectors, tmd, relations)
        predictions = []
        for stack in self.stacks():
            x, residual = embedded, None
            for layer in stack:
                x, residual = layer(x, residual)
            predictions.append(self.head(x, seq_vectors.dtype, residual))
        return torch.stack(predictions)

    def stacks(self) -> Iterator[nn.ModuleList]:
        """Yield each member's layers."""
        start = 0
        for depth in self.config.depths:
            yield self.layers[start : start + depth]
            start += depth

    def embed(self, vectors: Tensor, tmd: Tensor | None, relations: Tensor | None = None) -> Tensor:
        """Return ``(B, [L,] d_model)``, what the first layer sees of ``(B, [L,] 768)``."""
        x = self.input(F.normalize(vectors, dim=-1) * math.sqrt(self.config.d_vector))
        if self.tmd_adapter is not None:
            conditioning = self.tmd_adapter(tmd)
            x = x + (conditioning if x.ndim == 2 else conditioning[:, None])
        if self.relations is not None and relations is not None:
            x = x + self.relations(relations)
        return x

    def head(self, x: Tensor, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """Return unit rows ``(..., 768)`` from what the last layer gave, ``(..., d_model)``."""
        normed, _ = self.norm_f.add(x, residual)
        return normalize(linear.linear(self.output, normed), dtype)

    def allocate_inference_cache(self, batch: int) -> InferenceCache:
        """Return the memory of ``batch`` sequences of which nothing has been seen yet."""
        return rollout.empty_cache(self, batch)

    @torch.no_grad()
    def prefill(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        lengths: Tensor | None = None,
        relations: Tensor | None = None,
    ) -> Tensor:
        """Read ``(B, L, 768)`` into the cache, after what it holds; arguments as `forward`.

        Returns:
            ``(B, 768)`` unit rows, the vector that follows each sequence.

        Raises:
            ValueError: a shape, a length or the presence of ``tmd`` does not fit.
        """
        self._check(seq_vectors, tmd, relations, cache)
        if lengths is not None:
            check_lengths(lengths, *seq_vectors.shape[:2])
        return rollout.prefill(self, seq_vectors, tmd, cache, lengths, relations)

    @torch.no_grad()
    def step(
        self,
        vector: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        relation: Tensor | None = None,
    ) -> Tensor:
        """Read one more vector a sequence, ``(B, 768)``, and predict the next, as `prefill`.

        ``relation`` is ``(B, 2)``: number and confidence of the one by which the vector follows.
        """
        self.check_step(vector, tmd, relation, cache)
        return rollout.step(self, vector, tmd, cache, relation)

    def check_step(
        self, vector: Tensor, tmd: Tensor | None, relation: Tensor | None, cache: InferenceCache
    ) -> None:
        """Raise `ValueError` for arguments of `step` that do not fit."""
        steps = None if relation is None else relation[:, None]
        self._check(vector[:, None], tmd, steps, cache)

    def _check(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None,
        relations: Tensor | None,
        cache: InferenceCache | None = None,
    ) -> None:
        width, d_tmd = self.config.d_vector, self.config.d_tmd
        shape = tuple(seq_vectors.shape)
        if len(shape) != 3 or shape[1] < 1 or shape[2] != width:
            raise ValueError(f"seq_vectors must have shape (B, L, {width}), got {shape}")
        if (tmd is None) != (d_tmd == 0):
            wanted = f"tmd of shape (B, {d_tmd})" if d_tmd else "no tmd"
            raise ValueError(f"this model takes {wanted}, got {'none' if tmd is None else 'one'}")
        if tmd is not None and tuple(tmd.shape) != (shape[0], d_tmd):
            raise ValueError(f"tmd must have shape ({shape[0]}, {d_tmd}), got {tuple(tmd.shape)}")
        if cache is not None and cache.batch != shape[0]:
            raise ValueError(f"the cache is of {cache.batch} sequences, got {shape[0]}")
        check_relations(self.n_relations, relations, shape[:2])
