"""What a training minimises: the loss terms of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_mamba import metrics
from ocp_mamba.conditioning import conditions
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch
from ocp_mamba.model import NextVectorModel
from ocp_mamba.negatives import NO_RIVALS, Rivals
from ocp_mamba.readout import softmax_mean


def batch_losses(
    model: NextVectorModel,
    batch: Batch,
    bank: Tensor,
    config: TrainConfig,
    rivals: Rivals = NO_RIVALS,
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
        rivals: what InfoNCE tells the targets from beside the batch's other targets.
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
    recalled, log_sum = model.recall(members, config.temperature)
    terms = {"cosine": metrics.cosine_loss(recalled, targets)}
    if config.infonce_weight:
        candidate_ids = rivals.candidates(batch.all_targets)
        if log_sum is None or not rivals.remembered:
            candidates = rivals.vectors(candidate_ids, bank)
            _, log_sum = softmax_mean(members, candidates, config.temperature)
        hard = counted = None
        if rivals.hard is not None:
            hard_ids = rivals.hard.of(batch.inputs[batch.mask], target_ids)
            hard = bank[hard_ids.clamp_min(0)]
            counted = (hard_ids >= 0) & ~torch.isin(hard_ids, candidate_ids)
        given = (targets, log_sum, config.temperature, hard, counted)
        terms["infonce"] = metrics.info_nce(members, *given)
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
        rivals: Rivals = NO_RIVALS,
    ) -> dict[str, Tensor]:
        """Return what `batch_losses` does."""
        return batch_losses(self.model, batch, bank, config, rivals)
