"""Registered versions that are not what they claim: each is refused, by the name of its fault.

One tiny version is trained and registered. Each fraud is a copy of it that was edited on its way
into the registry; one that is *sealed* has all digests, tags and a run that agree with the edit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from forgeries import Forgery, Workshop
from mlflow.entities.model_registry import ModelVersion
from trainings import TINY, seeded

from ocp_mamba.baselines.checkpoint import save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import EvidenceError
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.jobs.promotion.checks import check_evidence
from ocp_mamba.jobs.promotion.evidence import headline_figures
from ocp_mamba.jobs.promotion.measure import compare, measure
from ocp_mamba.jobs.promotion.promote import REFUSED, PromotionJob, run_promotion
from ocp_mamba.model.checkpoint import load_model, save_checkpoint
from ocp_mamba.serving.bundle import CHECKPOINT, EVALUATION, MANIFEST, RECORDED
from ocp_mamba.tracking.aliases import CHAMPION, aliases_of, set_alias
from ocp_mamba.tracking.versions import find_version

NAME = "frauds"


@pytest.fixture(autouse=True)
def champion(workshop: Workshop) -> None:
    """The genuine version is the champion of the model that the frauds are versions of."""
    if not mlflow.MlflowClient().search_registered_models(f"name = '{NAME}'"):
        set_alias(NAME, CHAMPION, workshop.copy().register(NAME).version)


Edit = Callable[[Forgery], None]


def refused(version: ModelVersion, fault: str) -> None:
    """Assert that a version is refused by a name, and that nothing else has changed."""
    before = aliases_of(version.name)
    said: list[str] = []
    outcome = run_promotion(PromotionJob(version.version, version.name), said.append)
    assert outcome.verdict == REFUSED, outcome.card
    assert outcome.faults[0] == fault, outcome.card
    assert aliases_of(version.name) == before
    kept = find_version(version.name, version.version)
    assert kept.tags["promotion.faults"].split(", ")[0] == fault
    assert f"- {fault}: " in (kept.description or "")


# --- something was edited, and a digest or another record tells ------------------------------


def swap_weights(forgery: Forgery) -> None:
    forgery.weights(lambda content: content.update(state_dict=seeded(TINY, 1).state_dict()))


def cut(name: str) -> Edit:
    def edit(forgery: Forgery) -> None:
        path = forgery.file(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return edit


def without(name: str) -> Edit:
    return lambda forgery: forgery.file(name).unlink()


def swap_weights_and_all_digests_but_the_runs(forgery: Forgery) -> None:
    swap_weights(forgery)
    run, kept = forgery.run_id, dict(forgery.manifest)
    forgery.seal()
    forgery.run_id = run
    forgery.manifest["run_id"] = kept["run_id"]
    forgery.write_manifest()
    forgery.tags["run_id"] = run


def relabel(fields: dict[str, Any]) -> None:
    """Half of the train chains become val: what the model learnt is what it is evaluated on."""
    train = np.flatnonzero(fields["split"] == 0)
    fields["split"] = fields["split"].copy()
    fields["split"][train[::2]] = 1


def add_unlisted_sample(forgery: Forgery) -> None:
    np.savez(forgery.file("sample.npz"), chains=np.zeros(1))


def manifest_of_format_99(forgery: Forgery) -> None:
    forgery.manifest["format_version"] = 99
    forgery.write_manifest()


def score_in_manifest(forgery: Forgery) -> None:
    forgery.manifest["metrics"]["faiss_retrieval_p1"]["value"] = 0.99
    tag = forgery.tags["bundle.sha256"]
    forgery.write_manifest()
    forgery.tags["bundle.sha256"] = tag


def manifest_without_gates(forgery: Forgery) -> None:
    del forgery.manifest["gates"]
    forgery.write_manifest()


def other_run(forgery: Forgery) -> None:
    """The manifest stays that of the genuine run; the version claims another one."""
    experiment = mlflow.MlflowClient().get_run(forgery.run_id).info.experiment_id
    forgery.run_id = mlflow.MlflowClient().create_run(experiment).info.run_id


def run_that_is_gone(forgery: Forgery) -> None:
    forgery.seal()
    forgery.run_id = forgery.manifest["run_id"] = "0" * 32
    forgery.write_manifest()
    forgery.tags["run_id"] = forgery.run_id


def evil_code(forgery: Forgery) -> None:
    path = forgery.folder / "code/ocp_mamba/serving/request.py"
    path.write_text(path.read_text() + "\nimport os\n")


def evil_entry(forgery: Forgery) -> None:
    (forgery.folder / "pyfunc_entry.py").write_text("import os\n")


def other_weights_served(forgery: Forgery) -> None:
    """The server would read another file than the one that has the right digest."""
    shutil.copyfile(forgery.file(CHECKPOINT), forgery.file("other.pt"))
    path = forgery.folder / "MLmodel"
    path.write_text(path.read_text().replace("artifacts/model.pt", "artifacts/other.pt"))


def tagged(tag: str, value: str) -> Edit:
    return lambda forgery: forgery.tags.update({tag: value})


EDITED: dict[str, tuple[Edit, str]] = {
    "weights of another training": (swap_weights, "weights-changed"),
    "weights cut in half": (cut(CHECKPOINT), "weights-changed"),
    "no weights": (without(CHECKPOINT), "weights-missing"),
    "weights and every digest but the run's": (
        swap_weights_and_all_digests_but_the_runs,
        "manifest-changed",
    ),
    "evaluation set with train chains in val": (
        lambda forgery: forgery.evaluation(relabel),
        "evaluation-changed",
    ),
    "evaluation set cut in half": (cut(EVALUATION), "evaluation-changed"),
    "no evaluation set": (without(EVALUATION), "evaluation-missing"),
    "recorded predictions edited": (
        lambda forgery: forgery.recorded(nudged),
        "recorded-changed",
    ),
    "no recorded predictions": (without(RECORDED), "recorded-missing"),
    "no manifest": (without(MANIFEST), "manifest-missing"),
    "manifest that is no JSON": (cut(MANIFEST), "manifest-unreadable"),
    "manifest of an unknown format": (manifest_of_format_99, "manifest-format"),
    "manifest without gates": (manifest_without_gates, "manifest-incomplete"),
    "a score in the manifest": (score_in_manifest, "manifest-changed"),
    "a file that the manifest does not name": (add_unlisted_sample, "file-unlisted"),
    "a score in the version's tags": (tagged("faiss_retrieval_p1", "0.990000"), "scores-edited"),
    "a stale score in the version's tags": (
        tagged("val_next_vec_cosine", "0.500000"),
        "scores-edited",
    ),
    "a gate in the version's tags": (tagged("gate.no_leak", "not-run"), "gates-edited"),
    "a trained baseline's gate": (
        tagged("gate.beats_trained_baselines_p1", "pass"),
        "gates-edited",
    ),
    "another dataset in the version's tags": (
        tagged("dataset.fingerprint", "f" * 64),
        "other-data",
    ),
    "another encoder in the version's tags": (tagged("encoder.name", "gtr"), "encoder-mismatch"),
    "the code that is served": (evil_code, "code-changed"),
    "the file that the server runs": (evil_entry, "code-changed"),
    "the weights that the server reads": (other_weights_served, "mlmodel-changed"),
    "the manifest of another run": (other_run, "other-run"),
    "a run that is gone": (run_that_is_gone, "run-missing"),
}


@pytest.mark.parametrize("name", EDITED)
def test_an_edit_is_found_by_another_record(workshop: Workshop, name: str) -> None:
    edit, fault = EDITED[name]
    forgery = workshop.copy()
    edit(forgery)
    refused(forgery.register(NAME), fault)


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


def weights_of_other_data(forgery: Forgery) -> None:
    forgery.weights(lambda content: content.update(dataset_fingerprint="f" * 64))


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


def nudged(arrays: dict[str, np.ndarray]) -> None:
    arrays["predictions"] = arrays["predictions"] + np.float32(1e-4)


def predictions_of_other_weights(forgery: Forgery) -> None:
    swap_weights(forgery)


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
    "weights that do not fit their config": (config_that_does_not_fit, "weights-misfit"),
    "weights with NaN": (nan_weights, "weights-not-finite"),
    "weights of another training": (predictions_of_other_weights, "predictions-differ"),
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
    model, dataset = load_model(forgery.file(CHECKPOINT)), Dataset.load(forgery.file(EVALUATION))
    evaluation = evaluate(model, dataset, "val", name="this version")
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


def test_a_gate_that_says_pass_and_fails_is_refused(workshop: Workshop) -> None:
    forgery = workshop.copy()
    forgery.manifest["training"]["trends"] = [None, None, -0.1]
    forgery.seal()
    refused(forgery.register(NAME), "gates-differ")


# --- no version, another kind of version, another champion -----------------------------------


def test_a_version_that_was_deleted_is_refused(workshop: Workshop) -> None:
    version = workshop.copy().register(NAME)
    mlflow.MlflowClient().delete_model_version(NAME, version.version)
    for which in (version.version, "99", "nobody"):
        with pytest.raises(EvidenceError) as error:
            run_promotion(PromotionJob(which, NAME), print)
        assert error.value.fault == "version-missing"


def test_a_version_of_another_kind_of_model_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[str]) -> list[str]:
            return model_input

    client = mlflow.MlflowClient()
    mlflow.pyfunc.save_model(tmp_path / "other", python_model=Other(), pip_requirements=[])
    client.create_registered_model("other")
    refused(client.create_model_version("other", str(tmp_path / "other")), "weights-missing")


def test_a_version_whose_files_are_gone_is_refused(workshop: Workshop) -> None:
    forgery = workshop.copy()
    version = forgery.register(NAME)
    shutil.rmtree(forgery.folder)
    refused(version, "files-missing")


def test_a_champion_of_other_data_or_other_weights_is_no_comparison(workshop: Workshop) -> None:
    evidence = check_evidence(workshop.genuine, workshop.files)
    measured = measure(evidence, workshop.genuine.tags)

    def compared_with(edit: Edit, *, sealed: bool) -> str:
        forgery = workshop.copy()
        edit(forgery)
        if sealed:
            forgery.seal()
        with pytest.raises(EvidenceError) as error:
            compare(forgery.register(NAME), evidence, measured)
        return error.value.fault

    def other_data(forgery: Forgery) -> None:
        weights_of_other_data(forgery)
        forgery.manifest["dataset_fingerprint"] = "f" * 64

    assert compared_with(other_data, sealed=True) == "champion-other-data"
    assert compared_with(swap_weights, sealed=False) == "champion-changed"
    assert compared_with(without(EVALUATION), sealed=False) == "champion-changed"

    alike = compare(workshop.copy().register(NAME), evidence, measured)
    assert {figure.value for figure in alike.differences.values()} == {0.0}
    assert alike.lost == []
