import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundles import FACTS
from data_maker import TINY, make_dataset
from trainings import seeded

from ocp_mamba.config import D_TMD, ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import EvidenceError
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.serving.bundle import (
    CHECKPOINT,
    EVALUATION,
    MANIFEST,
    RECORDED,
    RECORDED_EXAMPLES,
    read_bundle,
    read_concepts,
    write_bundle,
)


def bundled(folder: Path, config: ModelConfig, dataset: Dataset) -> Path:
    """A folder as the ``artifacts`` of a registered version."""
    model = seeded(config).eval()
    checkpoint = folder / CHECKPOINT
    save_checkpoint(
        checkpoint,
        model,
        dataset_fingerprint=dataset.fingerprint,
        encoder=dataset.meta["encoder"],
    )
    write_bundle(folder, checkpoint, dataset, FACTS)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled(tmp_path_factory.mktemp("bundle"), ModelConfig(**TINY), make_dataset(60, 40))


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(**TINY),
        ModelConfig(**TINY, d_tmd=D_TMD),
        ModelConfig(**TINY, relations=("is a", "part of")),
    ],
    ids=["plain", "tmd", "relations"],
)
def test_a_bundle_says_what_the_model_is_and_what_it_predicts(
    tmp_path: Path, config: ModelConfig
) -> None:
    dataset = make_dataset(60, 40, relations=True)
    bundle = read_bundle(bundled(tmp_path, config, dataset))
    assert bundle.manifest["dataset_fingerprint"] == dataset.fingerprint
    assert bundle.manifest["evaluation_fingerprint"] == bundle.evaluation_set.fingerprint
    assert bundle.manifest["encoder"] == dataset.meta["encoder"]
    assert bundle.manifest["model_config"]["d_model"] == config.d_model
    recorded = bundle.recorded
    assert len(recorded.lengths) == min(RECORDED_EXAMPLES, dataset.n_examples("val"))
    assert (recorded.tmd is None) == (config.d_tmd == 0)
    assert (recorded.relations is None) == (config.relations == ())
    again = recorded.predict(bundle.checkpoint.build_model(), bundle.evaluation_set.bank)
    np.testing.assert_allclose(again, recorded.predictions, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, atol=1e-5)
    assert np.abs(recorded.predict(seeded(config, 1).eval(), dataset.bank) - again).max() > 1e-3


def test_recorded_contexts_are_examples_of_val(written: Path) -> None:
    bundle = read_bundle(written)
    dataset, recorded = bundle.evaluation_set, bundle.recorded
    examples = dataset.examples("val")
    contexts = {
        tuple(dataset.chain(c)[:k]) for c, k in zip(examples.chain, examples.position, strict=True)
    }
    for row, length in zip(recorded.contexts, recorded.lengths, strict=True):
        assert tuple(row[:length]) in contexts
        assert (row[length:] == -1).all()


def test_the_bank_is_read_without_the_dataset(written: Path) -> None:
    texts, bank = read_concepts(written / EVALUATION)
    dataset = make_dataset(60, 40)
    assert texts.tolist() == dataset.texts.tolist()
    np.testing.assert_allclose(bank, dataset.bank, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fault"),
    [(CHECKPOINT, "weights"), (EVALUATION, "evaluation"), (RECORDED, "recorded")],
)
def test_a_file_that_is_not_the_manifests_is_named(
    written: Path, tmp_path: Path, name: str, fault: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EvidenceError, match=name) as changed:
        read_bundle(folder)
    assert changed.value.fault == f"{fault}-changed"
    path.unlink()
    with pytest.raises(EvidenceError, match=name) as missing:
        read_bundle(folder)
    assert missing.value.fault == f"{fault}-missing"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "manifest-missing"),
        ("{", "manifest-unreadable"),
        ("[]", "manifest-format"),
        ('{"format_version": 99}', "manifest-format"),
        ('{"format_version": 1}', "manifest-incomplete"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    written: Path, tmp_path: Path, content: str | None, fault: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_text(content)
    with pytest.raises(EvidenceError, match=MANIFEST) as error:
        read_bundle(folder)
    assert error.value.fault == fault
    assert str(error.value).startswith(f"{fault}: ")


def test_a_manifest_cannot_name_a_file_outside_its_folder(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../other"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(EvidenceError, match="file-missing"):
        read_bundle(folder)
