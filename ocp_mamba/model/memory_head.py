"""The memory head: attention over the target vectors of the train split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ocp_mamba.config import ModelConfig
from ocp_mamba.kernels import cpu_memory_head
from ocp_mamba.kernels.products import inner_products


class MemoryHead(nn.Module):
    """Moves predictions towards the mean of the stored vectors near them.

    With memory ``M (n, 768)``, temperature T and weight w, a unit row h becomes the direction of
    ``h + w * softmax(h M' / T) M``. The softmax estimates the probability of each stored concept to
    come next, and the mean under it is the expected next vector, whose direction has the greatest
    expected cosine to the next vector. The term h remains for concepts that are not stored.

    Source: Ramsauer et al., "Hopfield Networks is All You Need", 2021, equation 3 (one step of
    retrieval, from stored patterns that are not trained).
    """

    memory: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Create an empty memory head, which does not change predictions."""
        super().__init__()
        self.max_rows = config.n_memory
        self.temperature, self.weight = config.memory_temperature, config.memory_weight
        self.register_buffer("memory", torch.zeros(0, config.d_vector))

    def set_memory(self, vectors: Tensor) -> None:
        """Store unit rows ``(n, 768)``, which replace all rows before.

        Raises:
            ValueError: there are more rows than the config allows, or they have another width.
        """
        width = self.memory.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width or len(vectors) > self.max_rows:
            raise ValueError(
                f"up to {self.max_rows} rows of {width} can be stored, got {tuple(vectors.shape)}"
            )
        self.memory = vectors.to(self.memory)

    def forward(self, queries: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Return each query after the memory head, for training.

        Args:
            queries: unit rows ``(..., 768)``.
            temperature: of training, in place of the config's.

        Returns:
            Rows ``(..., 768)`` that are not normalized, because a cosine does not depend on their
            length, and the logarithm of the softmax's sum ``(...)``, None for an empty memory.
        """
        if not len(self.memory):
            return queries, None
        retrieved, log_sum = softmax_mean(queries, self.memory, temperature)
        return torch.add(queries, retrieved, alpha=self.weight), log_sum

    def mixture(self, queries: Tensor) -> Tensor:
        """Return unit rows ``(..., 768)`` from the queries ``(M, ..., 768)`` of M members.

        Both the members' probabilities and their queries are averaged, so that a member with a
        sharp softmax has more influence than one with a flat softmax.
        """
        mean = queries.mean(dim=0)
        if len(self.memory):
            mean = mean + self.weight * self._read(queries).to(mean.dtype)
        return F.normalize(mean, dim=-1)

    def _read(self, queries: Tensor) -> Tensor:
        """Mean of the stored rows under the members' mean probabilities, ``(..., 768)``."""
        if cpu_memory_head.takes(queries, self.memory):
            rows = queries.flatten(0, -2)
            retrieved: Tensor = torch.ops.ocp_mamba.read_memory(rows, self.memory, self.temperature)
            return retrieved.view(queries.shape[1:])
        probs = self._probs(queries, self.temperature).mean(dim=0)
        return probs @ self.memory.to(probs.dtype)

    def _probs(self, queries: Tensor, temperature: float) -> Tensor:
        """Probability of each stored row, ``(..., n)``."""
        logits = inner_products(queries, self.memory)
        # autocast would compute this in float32, in several times the memory of everything else
        return (logits / temperature).softmax(dim=-1, dtype=logits.dtype)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take as many rows as the file has: their number is known only after training."""
        stored = state_dict.get(f"{prefix}memory")
        if isinstance(stored, Tensor) and stored.shape[1:] == self.memory.shape[1:]:
            self.memory = self.memory.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def softmax_mean(queries: Tensor, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the mean of rows, weighted by ``softmax(queries @ rows.T / temperature)``.

    Args:
        queries: ``(..., D)``.
        rows: ``(n, D)``; no gradient goes to them.
        temperature: divisor of the inner products.

    Returns:
        The mean, ``(..., D)``, and the logarithm of the softmax's sum, ``(...)``; the latter minus
        a row's own inner product over the temperature is the negative log probability of that row.
        Both are in the queries' dtype; under autocast the products are in autocast's.
    """
    mean, log_sum = _SoftmaxMean.apply(queries.flatten(0, -2), rows, temperature)
    return mean.view_as(queries), log_sum.view(queries.shape[:-1])


class _SoftmaxMean(torch.autograd.Function):
    """`softmax_mean` with the four matrix products that it and its gradient need.

    The gradient of the log sum is the mean divided by the temperature, without a further product.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, rows: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        kind = queries.device.type
        low = torch.is_autocast_enabled(kind) and queries.dtype == torch.float32
        dtype = torch.get_autocast_dtype(kind) if low else queries.dtype
        rows, scaled = rows.to(dtype), (rows / temperature).to(dtype)
        logits = queries.to(dtype) @ scaled.T
        probs = logits.softmax(dim=-1, dtype=dtype)
        # the greatest logit minus the logarithm of its probability
        log_sum = logits.amax(dim=-1).to(queries.dtype) - probs.amax(dim=-1).to(queries.dtype).log()
        mean = (probs @ rows).to(queries.dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(probs, rows, scaled, mean)
        ctx.temperature = temperature
        return mean, log_sum

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dmean: Tensor | None, dlog_sum: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        probs, rows, scaled, mean = ctx.saved_tensors
        dqueries = None
        if dmean is not None:
            along = torch.linalg.vecdot(dmean, mean)[:, None].to(rows.dtype)
            dlogits = (dmean.to(rows.dtype) @ rows.T).sub_(along).mul_(probs)
            dqueries = (dlogits @ scaled).to(mean.dtype)
        if dlog_sum is not None:
            share = dlog_sum[:, None] / ctx.temperature
            dqueries = mean * share if dqueries is None else dqueries.addcmul_(mean, share)
        return dqueries, None, None
