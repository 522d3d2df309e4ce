"""What a training minimises: the loss terms of a batch."""

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

    One causal pass gives every prefix's prediction, so this is exactly the objective of one prefix
    per example. Each member of the model is taught by its own loss; theirs are averaged. The cosine
    is that of what it recalls, InfoNCE that of what it recalls it by: where candidates are what is
    remembered, one softmax gives both. Of a batch that several processes share, each gives its part
    of the mean: the parts add up to what one process would give. Where chains are mixed, so are the
    targets: the cosine is to the mixture, and InfoNCE is that of either target, by its weight.

    Args:
        model: predicts.
        batch: B chains, padded to L.
        bank: float32 ``(n_concepts, 768)`` unit rows on the batch's device.
        config: weights and temperature.
        negatives: what InfoNCE tells the targets from beside the batch's other targets.
    """
    taken = conditions(model, batch.tmd, batch.relations)
    members = model.predict_members(batch.vectors, **taken)
    # not members[:, mask], whose gradient sorts the rows that it adds up
    members = members.flatten(1, 2).index_select(1, batch.mask.flatten().nonzero().squeeze(1))
    target_ids = batch.targets[batch.mask]
    targets = bank[target_ids]
    if batch.mix is not None:
        weight, others = batch.mix.weight[batch.mask], batch.mix.targets[batch.mask]
        targets = torch.lerp(bank[others], targets, weight[:, None])
    retrieved, log_sum = model.read_memory(members, config.temperature)
    terms = {"cosine": cosine_loss(retrieved, targets)}
    if config.infonce_weight:
        candidate_ids = negative_pool.candidates(batch.all_targets)
        if log_sum is None or not negative_pool.is_memory:
            candidates = negative_pool.vectors(candidate_ids, bank)
            _, log_sum = softmax_mean(members, candidates, config.temperature)
        hard = counted = None
        if negative_pool.hard is not None:
            hard_ids = negative_pool.hard.of(batch.inputs[batch.mask], target_ids)
            hard = bank[hard_ids.clamp_min(0)]
            counted = (hard_ids >= 0) & ~torch.isin(hard_ids, candidate_ids)
        given = (targets, log_sum, config.temperature, hard, counted)
        terms["infonce"] = info_nce(members, *given)
    share = len(members) * len(batch.all_targets)
    losses = {name: term.sum() / share for name, term in terms.items()}
    weighted = [config.loss_weights[name] * loss for name, loss in losses.items()]
    return losses | {"total": torch.stack(weighted).sum()}


class Objective(nn.Module):
    """`batch_losses` as a module, as `World.wrap` wants it."""

    def __init__(self, model: NextVectorModel) -> None:
        """Take the model, whose parameters are this module's."""
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
    """1 - cosine of rows ``(..., M, D)`` and their targets, ``(M, D)``: ``(..., M)`` in 0..2."""
    return 1 - cosine_to(targets, predictions)


def info_nce(
    predictions: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    temperature: float,
    hard: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Contrastive loss of unit predictions against candidates, the targets among them.

    Candidates are distinct: a target that occurs twice is one of them, so that no example has its
    own target among its negatives. Hard negatives join the denominator of their own example alone.
    A target mixed of two concepts has the mean loss of either, by its weights: the loss is linear
    in the target. Source: van den Oord et al., "Representation Learning with Contrastive
    Predictive Coding", 2018, equation 4.

    Args:
        predictions: ``(..., M, D)`` unit rows.
        targets: ``(M, D)`` unit rows of candidates, or mixtures of two.
        log_sum: ``(..., M)``, logarithm of the sum of ``exp(cosine / temperature)`` over the
            candidates.
        temperature: divisor of the cosines.
        hard: ``(M, K, D)`` unit rows, each example's hard negatives.
        counted: bool ``(M, K)``, which of them are no candidates, and so not in the sum yet; the
            others are not read.

    Returns:
        ``(..., M)``, in nats; the logarithm of the number of candidates is chance.
    """
    if hard is not None and counted is not None:
        logits = torch.einsum("...md,mkd->...mk", predictions, hard) / temperature
        logits = logits.masked_fill(~counted, -math.inf).to(log_sum.dtype)
        log_sum = torch.cat([log_sum[..., None], logits], dim=-1).logsumexp(dim=-1)
    return log_sum - (predictions * targets).sum(dim=-1) / temperature
