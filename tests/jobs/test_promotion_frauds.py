"""Registered versions that are not what they claim: each is refused, by the name of its fault.

One tiny version is trained and registered. Each fraud is a copy of it that was edited on its way
into the registry; one that is *sealed* has all digests, tags and a run that agree with the edit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
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
    without,
)

from ocp_mamba.errors import EvidenceError
from ocp_mamba.jobs.promotion.checks import check_evidence
from ocp_mamba.jobs.promotion.measure import compare, measure
from ocp_mamba.jobs.promotion.promote import PromotionJob, run_promotion
from ocp_mamba.serving.bundle import CHECKPOINT, EVALUATION, MANIFEST, RECORDED

pytestmark = pytest.mark.usefixtures("champion")


# --- something was edited, and a digest or another record tells ------------------------------


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
