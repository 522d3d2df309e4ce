"""The loss terms of a batch, which a training minimizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch
from ocp_mamba.kernels.cosine import cosine_to
from ocp_mamba.model.base import NextVectorModel, conditions
from ocp_mamba.model.memory_head import softmax_mean
from ocp_mamba.training.negatives import NO_NEGATIVES, NegativePool


def batch_losses(
    model: NextVectorModel,
    batch: Batch,
    bank: Tensor,
    config: TrainConfig,
    negative_pool: NegativePool = NO_NEGATIVES,
) -> dict[str, Tensor]:
    """Loss terms of a batch, each a mean over its OCP sequences; ``total`` is their weighted sum.

    One causal pass predicts after every prefix, so that the loss is exactly the one of an example
    per prefix. Each member of the model has its own loss, and the members' losses are averaged.
    With a memory head, the cosine loss is of the prediction after the head, and InfoNCE is of the
    query before it; where the candidates are the rows of the memory, both need the same softmax,
    which is computed once. Where several processes share a batch, each returns its part of the
    mean: the parts add up to the loss of one process. Where chains are mixed, the targets are mixed
    too: the cosine is to the mixture, and InfoNCE is the weighted mean for the two targets.

    Args:
        model: predicts.
        batch: B chains, padded to L.
        bank: float32 ``(n_concepts, 768)`` unit rows on the batch's device.
        config: weights and temperature.
        negative_pool: candidates of InfoNCE beside the batch's targets, and hard negatives.

    Returns:
        Scalars by name: ``cosine``, ``infonce`` where it has a weight, and ``total``.
    """
    given = conditions(model, batch.tmd, batch.relations)
    members = model.predict_members(batch.vectors, **given)
    # members[:, mask] would be slower: its gradient sorts the rows that it adds up
    members = members.flatten(1, 2).index_select(1, batch.mask.flatten().nonzero().squeeze(1))
    target_ids = batch.targets[batch.mask]
    targets = bank[target_ids]
    if batch.mix is not None:
        weight, others = batch.mix.weight[batch.mask], batch.mix.targets[batch.mask]
        targets = torch.lerp(bank[others], targets, weight[:, None])
    candidates = hard = counted = None
    if config.infonce_weight:
        candidate_ids = negative_pool.candidates(batch.all_targets)
        if not negative_pool.is_memory:
            candidates = negative_pool.vectors(candidate_ids, bank)
        if negative_pool.hard is not None:
            hard_ids = negative_pool.hard.of(batch.inputs[batch.mask], target_ids)
            hard = bank[hard_ids.clamp_min(0)]
            counted = (hard_ids >= 0) & ~torch.isin(hard_ids, candidate_ids)
    terms = loss_terms(model, members, targets, config, candidates, hard, counted)
    share = len(members) * len(batch.all_targets)
    return with_total({name: term.sum() / share for name, term in terms.items()}, config)


def loss_terms(
    model: NextVectorModel,
    members: Tensor,
    targets: Tensor,
    config: TrainConfig,
    candidates: Tensor | None = None,
    hard: Tensor | None = None,
    counted: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return each loss term of each prediction, ``(M, R)``, by name.

    Args:
        model: reads its memory head.
        members: ``(M, R, 768)`` unit rows that M members predict.
        targets: ``(R, 768)`` unit rows, or mixtures of two.
        config: weights and temperature.
        candidates: ``(C, 768)`` of InfoNCE; None where they are the rows of the memory head, and
            where InfoNCE has no weight.
        hard: see `info_nce`.
        counted: see `info_nce`.
    """
    retrieved, log_sum = model.read_memory(members, config.temperature)
    terms = {"cosine": cosine_loss(retrieved, targets)}
    if config.infonce_weight:
        if candidates is not None:
            _, log_sum = softmax_mean(members, candidates, config.temperature)
        assert log_sum is not None
        terms["infonce"] = info_nce(members, targets, log_sum, config.temperature, hard, counted)
    return terms


def with_total(losses: dict[str, Tensor], config: TrainConfig) -> dict[str, Tensor]:
    """Return the loss terms of a batch, scalars by name, and their weighted sum ``total``."""
    weighted = [config.loss_weights[name] * loss for name, loss in losses.items()]
    return losses | {"total": torch.stack(weighted).sum()}


class Objective(nn.Module):
    """`batch_losses` as a module, for `World.wrap_ddp`."""

    def __init__(self, model: NextVectorModel) -> None:
        """Hold the model, whose parameters become this module's."""
        super().__init__()
        self.model = model

    def forward(
        self,
        batch: Batch,
        bank: Tensor,
        config: TrainConfig,
        negative_pool: NegativePool = NO_NEGATIVES,
    ) -> dict[str, Tensor]:
        """Return what `batch_losses` does."""
        return batch_losses(self.model, batch, bank, config, negative_pool)


def cosine_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - cosine, ``(..., M)`` in 0..2, of rows ``(..., M, D)`` to targets ``(M, D)``."""
    return 1 - cosine_to(targets, predictions)


def info_nce(
    predictions: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    temperature: float,
    hard: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss of unit predictions; the targets are among the candidates.

    Candidates are distinct: a target that occurs twice is one candidate, so that no example has its
    own target among its negatives. Hard negatives are added to the denominator of their own example
    only. The loss is linear in the target, so that a target mixed of two concepts has the weighted
    mean of the two losses. Source: van den Oord et al., "Representation Learning with Contrastive
    Predictive Coding", 2018, equation 4.

    Args:
        predictions: ``(..., M, D)`` unit rows.
        targets: ``(M, D)`` unit rows of candidates, or mixtures of two.
        log_sum: ``(..., M)``, logarithm of the sum of ``exp(cosine / temperature)`` over the
            candidates.
        temperature: divisor of the cosines.
        hard: ``(M, K, D)`` unit rows, each example's hard negatives.
        counted: bool ``(M, K)``, which hard negatives to add: those that are not in the sum yet as
            candidates, and that are no padding.

    Returns:
        ``(..., M)``, in nats; at chance it is the logarithm of the number of candidates.
    """
    if hard is not None and counted is not None:
        logits = torch.einsum("...md,mkd->...mk", predictions, hard) / temperature
        logits = logits.masked_fill(~counted, -math.inf).to(log_sum.dtype)
        log_sum = torch.cat([log_sum[..., None], logits], dim=-1).logsumexp(dim=-1)
    return log_sum - (predictions * targets).sum(dim=-1) / temperature
