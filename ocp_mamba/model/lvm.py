"""`OCPMambaLVM`, the specified model: one stack of Mamba-2 layers between concept vectors.

Shapes: B sequences, L positions, D = ``d_model``, 768 the width of a concept vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import ConfigError
from ocp_mamba.kernels.cosine import normalize
from ocp_mamba.model.base import NextVectorModel, check_lengths
from ocp_mamba.model.cache import InferenceCache, LayerState
from ocp_mamba.model.mamba2 import Mamba2Layer, RMSNorm
from ocp_mamba.model.quantize import linear


class OCPMambaLVM(NextVectorModel):
    """Next-vector predictor: ``n_layers`` Mamba-2 layers between concept vectors.

    An input row may have any length but zero, because only its direction is used. Predictions are
    unit rows. Where ``d_model`` is not 768, a linear ``input`` maps to it. ``conditions`` are
    further inputs of a subclass, beside the vectors and ``tmd``; this class takes none.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        """Create a model with freshly drawn weights (torch's global generator).

        Raises:
            ConfigError: the config needs a subclass.
        """
        super().__init__()
        self.config = c = config or ModelConfig()
        if type(self) is OCPMambaLVM and (c.members > 1 or c.n_memory or c.n_lookup or c.relations):
            raise ConfigError(
                "an OCPMambaLVM is one stack of layers; members, n_memory, n_lookup and relations "
                "belong to other classes: make the model by ocp_mamba.model.build_model(config)"
            )
        self.d_tmd = c.d_tmd
        self.input = nn.Identity() if c.d_model == c.d_vector else nn.Linear(c.d_vector, c.d_model)
        self.tmd_adapter = nn.Linear(c.d_tmd, c.d_model) if c.d_tmd else None
        self.layers = nn.ModuleList(Mamba2Layer(c) for _ in range(c.n_layers))
        self.norm_f = RMSNorm(c.d_model)
        self.output = nn.Linear(c.d_model, c.d_vector)
        for module in (self.input, self.tmd_adapter, self.output):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None = None,
        lengths: Tensor | None = None,
        **conditions: Tensor | None,
    ) -> Tensor:
        """Predict the vector that follows each sequence.

        Args:
            seq_vectors: ``(B, L, 768)``, right-padded.
            tmd: ``(B, 16)`` for a model with TMD conditioning, else None.
            lengths: ``(B,)`` valid positions of each row, 1..L; None means L for all.
            conditions: as `predict_all` of a subclass takes them.

        Returns:
            ``(B, 768)`` unit rows, from each row's last valid position.

        Raises:
            ValueError: a shape, a length or the presence of ``tmd`` does not fit the model.
        """
        predictions = self.predict_all(seq_vectors, tmd, **conditions)
        if lengths is None:
            return predictions[:, -1]
        check_lengths(lengths, *seq_vectors.shape[:2])
        return predictions[torch.arange(len(lengths), device=lengths.device), lengths.long() - 1]

    def predict_all(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, **conditions: Tensor | None
    ) -> Tensor:
        """Predict the next vector at every position in one causal pass.

        Args:
            seq_vectors: ``(B, L, 768)``, right-padded; position t sees positions <= t only.
            tmd: ``(B, 16)`` for a model with TMD conditioning, else None.
            conditions: further inputs of a subclass.

        Returns:
            ``(B, L, 768)`` unit rows; row t predicts the vector of position t + 1.

        Raises:
            ValueError: a shape or the presence of ``tmd`` does not fit the model.
        """
        self.check(seq_vectors, tmd, None, **conditions)
        return self.run_layers(self.embed(seq_vectors, tmd, **conditions), self.layers)

    def predict_members(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, **conditions: Tensor | None
    ) -> Tensor:
        """Return `predict_all` as that of one member, ``(1, B, L, 768)``."""
        return self.predict_all(seq_vectors, tmd, **conditions)[None]

    def embed(self, vectors: Tensor, tmd: Tensor | None, **conditions: Tensor | None) -> Tensor:
        """Return the first layer's input, ``(B, [L,] D)``, from ``(B, [L,] 768)``."""
        x: Tensor = self.input(F.normalize(vectors, dim=-1) * math.sqrt(self.config.d_vector))
        if self.tmd_adapter is not None:
            conditioning = self.tmd_adapter(tmd)
            x = x + (conditioning if x.ndim == 2 else conditioning[:, None])
        return x

    def run_layers(self, x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
        """Return unit rows ``(B, L, 768)`` from ``(B, L, D)`` by some layers and the head."""
        residual = None
        for layer in layers:
            x, residual = layer(x, residual)
        return self.head(x, residual)

    def head(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return unit rows ``(..., 768)``, in the weights' dtype, from ``(..., D)``."""
        normed, _ = self.norm_f.add(x, residual)
        return normalize(linear(self.output, normed), self.norm_f.weight.dtype)

    def allocate_inference_cache(self, batch: int) -> InferenceCache:
        """Return a cache for ``batch`` sequences that are still empty."""
        c, like = self.config, self.norm_f.weight.detach()
        return InferenceCache(
            tuple(
                LayerState(
                    # channels last in memory, as mamba_ssm allocates it
                    like.new_zeros(batch, c.d_conv, c.d_inner + 2 * c.d_state).transpose(1, 2),
                    like.new_zeros(batch, c.nheads, c.headdim, c.d_state),
                )
                for _ in range(c.n_layers)
            )
        )

    @torch.no_grad()
    def prefill(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        lengths: Tensor | None = None,
        **conditions: Tensor | None,
    ) -> Tensor:
        """Append ``(B, L, 768)`` to the cached sequences; arguments as `forward`.

        Returns:
            ``(B, 768)`` unit rows, the vector that follows each sequence.

        Raises:
            ValueError: a shape, a length or the presence of ``tmd`` does not fit.
        """
        self.check(seq_vectors, tmd, cache, **conditions)
        if lengths is not None:
            check_lengths(lengths, *seq_vectors.shape[:2])
        x = self.embed(seq_vectors, tmd, **conditions)
        return self.predict_after(x, cache, lengths)

    def predict_after(self, x: Tensor, cache: InferenceCache, lengths: Tensor | None) -> Tensor:
        """Append ``(B, L, D)`` to the cache; returns ``(B, 768)`` after the last valid position."""
        return self.prefill_layers(x, self.layers, cache.layers, lengths)

    def prefill_layers(
        self,
        x: Tensor,
        layers: Iterable[nn.Module],
        states: Sequence[LayerState],
        lengths: Tensor | None,
    ) -> Tensor:
        """Return ``(B, 768)`` from ``(B, L, D)`` by some layers, which go on from their states."""
        B, L = x.shape[:2]
        valid, last = None, torch.full((B,), L - 1, device=x.device)
        if lengths is not None:
            valid = torch.arange(L, device=x.device) < lengths[:, None]
            last = lengths.long() - 1
        for layer, state in zip(layers, states, strict=True):
            assert isinstance(layer, Mamba2Layer)
            x = layer.prefill(x, state, lengths, valid)
        return self.head(x[torch.arange(B, device=x.device), last])

    @torch.no_grad()
    def step(
        self,
        vector: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        **conditions: Tensor | None,
    ) -> Tensor:
        """Append a vector to each sequence, ``(B, 768)``, and predict the next, ``(B, 768)``.

        Raises:
            ValueError: a shape or the presence of ``tmd`` does not fit.
        """
        self.check_step(vector, tmd, cache, **conditions)
        return self.step_unchecked(vector, tmd, cache, **conditions)

    def step_unchecked(
        self,
        vector: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        **conditions: Tensor | None,
    ) -> Tensor:
        """`step` without its checks, for a compiler that takes a whole function."""
        return self.predict_next(self.embed(vector, tmd, **conditions), cache)

    def predict_next(self, x: Tensor, cache: InferenceCache) -> Tensor:
        """Append one position ``(B, D)`` to the cache; returns the prediction, ``(B, 768)``."""
        return self.head(self.step_layers(x, self.layers, cache.layers))

    def step_layers(
        self, x: Tensor, layers: Iterable[nn.Module], states: Sequence[LayerState]
    ) -> Tensor:
        """Return ``(B, D)`` from one position ``(B, D)``; the layers' states are updated."""
        for layer, state in zip(layers, states, strict=True):
            assert isinstance(layer, Mamba2Layer)
            x = layer.step(x, state)
        return x

    def check_step(
        self,
        vector: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        **conditions: Tensor | None,
    ) -> None:
        """Raise `ValueError` for arguments of `step` that do not fit."""
        each = {k: None if v is None else v[:, None] for k, v in conditions.items()}
        self.check(vector[:, None], tmd, cache, **each)

    def check(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache | None = None,
        **conditions: Tensor | None,
    ) -> None:
        """Raise `ValueError` for vectors, TMD vectors, a cache or conditions that do not fit."""
        for name, value in conditions.items():
            if value is not None:
                raise ValueError(f"this model takes no {name}, got some")
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
            raise ValueError(f"the cache has {cache.batch} sequences, got {shape[0]}")
