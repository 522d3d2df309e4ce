"""Frauds that every digest, tag and run agree with: the content tells, and each has its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from forgeries import (
    NAME,
    Edit,
    Forgery,
    Workshop,
    cut,
    nudged,
    refused,
    swap_weights,
    weights_of_other_data,
)
from trainings import TINY, seeded

from ocp_mamba.baselines.checkpoint import save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.jobs.open_model import what_it_learnt
from ocp_mamba.jobs.promotion.evidence import headline_figures
from ocp_mamba.model.checkpoint import load_checkpoint, save_checkpoint
from ocp_mamba.serving.bundle import CHECKPOINT, EVALUATION

pytestmark = pytest.mark.usefixtures("champion")


# --- every digest and tag agrees with the edit, and the content tells ------------------------


def other_config(forgery: Forgery) -> None:
    model = seeded(replace(TINY, d_state=8)).eval()
    save_checkpoint(
        forgery.file(CHECKPOINT),
        model,
        dataset_fingerprint=forgery.manifest["dataset_fingerprint"],
        encoder=forgery.manifest["encoder"],
    )


def config_that_does_not_fit(forgery: Forgery) -> None:
    forgery.weights(lambda content: content["model_config"].update(d_state=8))
    forgery.manifest["model_config"]["d_state"] = 8


def nan_weights(forgery: Forgery) -> None:
    forgery.weights(lambda content: content["state_dict"]["output.bias"].fill_(torch.nan))


def gru_weights(forgery: Forgery) -> None:
    save_baseline(
        forgery.file(CHECKPOINT),
        TRAINED_BASELINES["gru"](TINY, 50_000),
        dataset_fingerprint=forgery.manifest["dataset_fingerprint"],
        encoder=forgery.manifest["encoder"],
    )


def weights_of_another_encoder(forgery: Forgery) -> None:
    encoder = {"name": "other", "weight_hash": "1" * 64}
    forgery.weights(lambda content: content.update(encoder=encoder))


def bank_of_another_encoder(forgery: Forgery) -> None:
    encoder = {"name": "other", "weight_hash": "1" * 64}
    forgery.evaluation(lambda fields: fields.update(meta=fields["meta"] | {"encoder": encoder}))


def shrink(fields: dict[str, Any]) -> None:
    """Take two concepts out of the bank, and the chains that have them."""
    chains = fields["chain_values"].reshape(-1, 8)
    kept = np.setdiff1d(np.arange(24), [0, 12])
    rows = np.flatnonzero(np.isin(chains, kept).all(axis=1))
    fields |= {
        "bank": fields["bank"][kept],
        "texts": fields["texts"][kept],
        "chain_values": np.searchsorted(kept, chains[rows]).astype(np.int32).ravel(),
        "chain_offsets": np.arange(len(rows) + 1, dtype=np.int64) * 8,
        "split": fields["split"][rows],
        "chain_source": fields["chain_source"][rows],
        "chain_first": fields["chain_first"][rows],
    }


def nothing_in_val(fields: dict[str, Any]) -> None:
    fields["split"] = np.zeros_like(fields["split"])


def few_recorded(arrays: dict[str, np.ndarray]) -> None:
    arrays |= {name: array[:1] for name, array in arrays.items()}


def pickled_recorded(forgery: Forgery) -> None:
    forgery.recorded(lambda arrays: arrays.update(lengths=np.array([None, {}], dtype=object)))


def other_metrics(forgery: Forgery) -> None:
    forgery.manifest["metrics_version"] = "2"


def better_scores(forgery: Forgery) -> None:
    forgery.manifest["metrics"]["unseen/faiss_retrieval_p1"]["value"] = 0.99


def narrower_interval(forgery: Forgery) -> None:
    forgery.manifest["metrics"]["next_vec_cosine"]["low"] = 0.63


def fewer_metrics(forgery: Forgery) -> None:
    del forgery.manifest["metrics"]["unseen/next_vec_cosine"]


SEALED: dict[str, tuple[Edit, str]] = {
    "weights cut in half": (cut(CHECKPOINT), "weights-unreadable"),
    "weights of a GRU": (gru_weights, "weights-unreadable"),
    "weights of another config": (other_config, "config-differs"),
    "weights that do not fit their config": (config_that_does_not_fit, "weights-unreadable"),
    "weights with NaN": (nan_weights, "weights-unreadable"),
    "weights of another training": (swap_weights, "predictions-differ"),
    "weights trained on other data": (weights_of_other_data, "other-data"),
    "weights trained on another encoder": (weights_of_another_encoder, "encoder-mismatch"),
    "a bank of another encoder": (bank_of_another_encoder, "encoder-mismatch"),
    "a smaller pool": (lambda forgery: forgery.evaluation(shrink), "pool-changed"),
    "an empty val split": (
        lambda forgery: forgery.evaluation(nothing_in_val),
        "evaluation-empty",
    ),
    "fewer recorded predictions": (
        lambda forgery: forgery.recorded(few_recorded),
        "recorded-incomplete",
    ),
    "other recorded predictions": (
        lambda forgery: forgery.recorded(nudged),
        "predictions-differ",
    ),
    "recorded predictions with a pickle": (pickled_recorded, "recorded-unreadable"),
    "metrics of another definition": (other_metrics, "metrics-version"),
    "better scores": (better_scores, "scores-differ"),
    "a narrower interval": (narrower_interval, "scores-differ"),
    "a metric left out": (fewer_metrics, "scores-differ"),
}


@pytest.mark.parametrize("name", SEALED)
def test_an_edit_that_all_records_agree_with_is_found_by_content(
    workshop: Workshop, name: str
) -> None:
    edit, fault = SEALED[name]
    forgery = workshop.copy()
    edit(forgery)
    forgery.seal()
    refused(forgery.register(NAME), fault)


def measured_again(forgery: Forgery) -> None:
    """Put the metrics into the manifest that the edited evaluation set gives."""
    checkpoint = load_checkpoint(forgery.file(CHECKPOINT))
    dataset = Dataset.load(forgery.file(EVALUATION))
    learnt = what_it_learnt("this version", checkpoint.learnt)
    evaluation = evaluate(
        checkpoint.build_model(), dataset, "val", name="this version", trained_on=learnt
    )
    forgery.manifest["metrics"] = headline_figures(evaluation)


def test_an_evaluation_set_that_train_has_is_refused(workshop: Workshop) -> None:
    def leak(fields: dict[str, Any]) -> None:
        """The first val chain stands in train too."""
        val = np.flatnonzero(fields["split"] == 1)[0]
        chains = fields["chain_values"].reshape(-1, 8).copy()
        chains[0] = chains[val]
        fields["chain_values"] = chains.ravel()

    forgery = workshop.copy()
    forgery.evaluation(leak)
    measured_again(forgery)
    forgery.seal()
    refused(forgery.register(NAME), "evaluation-leaked")


def test_a_model_that_is_evaluated_on_what_it_learnt_is_refused(workshop: Workshop) -> None:
    def relabel(fields: dict[str, Any]) -> None:
        """Chains of train and of val change places, so that no example is in both."""
        split = fields["split"].copy()
        split[fields["split"] == 0], split[fields["split"] == 1] = 1, 0
        fields["split"] = split

    forgery = workshop.copy()
    forgery.evaluation(relabel)
    measured_again(forgery)
    forgery.seal()
    refused(forgery.register(NAME), "evaluation-leaked")


def test_a_gate_that_says_pass_and_fails_is_refused(workshop: Workshop) -> None:
    forgery = workshop.copy()
    forgery.manifest["training"]["trends"] = [None, None, -0.1]
    forgery.seal()
    refused(forgery.register(NAME), "gates-differ")
