"""What the code computed before its modules were moved, kept in files: it must compute it still."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ocp_mamba.config import TrainConfig, model_config, override
from ocp_mamba.data import load_dataset
from ocp_mamba.data.batches import batches
from ocp_mamba.model import build_model, load_model
from ocp_mamba.presets import preset
from ocp_mamba.training.negatives import build_negative_pool
from ocp_mamba.training.schedule import learning_rate, make_plan, mixup_of
from ocp_mamba.training.state import TrainState
from ocp_mamba.training.trainer import make_optimizer, train_step

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
STEPS = json.loads((FIXTURES / "golden_loss.json").read_text())


@pytest.fixture(scope="module")
def known() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "predictions_v1.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it was registered by an earlier version, with a copy of that version's code."""
    folder = tmp_path_factory.mktemp("registered")
    with zipfile.ZipFile(FIXTURES / "registered_v1.zip") as archive:
        archive.extractall(folder)
    return folder


def test_ten_steps_of_the_former_default_have_the_losses_that_they_had() -> None:
    """The preset hedged on the default data: 3 stacks of 2 layers, a memory head, float32."""
    dataset = load_dataset(ROOT / "ocp_training_9k.npz")
    assert dataset.fingerprint == STEPS["dataset"]
    hedged = preset("hedged")
    config = override(TrainConfig(precision="float32", compile="off"), **hedged.train)
    torch.manual_seed(config.seed)
    model = build_model(model_config("small", **hedged.model)).train()
    bank = torch.from_numpy(dataset.bank)
    state = TrainState(model, make_optimizer(model, config), "float32")
    state.negative_pool = build_negative_pool(dataset, config, model.memory_head)
    plan = make_plan(dataset, config)
    given = batches(
        dataset,
        "train",
        config.batch_size,
        bank=bank,
        shuffle_seed=1,
        min_context=config.min_context,
        mixup=mixup_of(1, config),
    )
    for number, (batch, then) in enumerate(zip(given, STEPS["steps"], strict=False)):
        rate = learning_rate(number, plan.total_steps, config)
        losses = train_step(state, batch, bank, rate, config)
        assert losses == pytest.approx(then, abs=1e-4), f"step {number + 1}"
    assert state.step == len(STEPS["steps"]) == 10


def test_a_file_of_version_1_predicts_what_it_did(known: dict[str, np.ndarray]) -> None:
    model = load_model(FIXTURES / "one_stack_v1.pt")
    assert type(model).__name__ == "OCPMambaLVM"
    with torch.inference_mode():
        found = model(
            torch.from_numpy(known["vectors"]), lengths=torch.from_numpy(known["lengths"])
        )
    np.testing.assert_allclose(found.numpy(), known["one_stack"], atol=1e-6)


def test_a_file_of_version_1_with_all_that_a_model_can_have(
    registered: Path, known: dict[str, np.ndarray]
) -> None:
    """Several stacks, a memory head, TMD vectors and relations, under names that changed since."""
    model = load_model(registered / "artifacts" / "model.pt")
    assert type(model).__name__ == "RelationLVM"
    assert model.memory_head is not None
    assert len(model.memory_head.memory) == 40
    names = ("vectors", "tmd", "lengths", "relations")
    vectors, tmd, lengths, relations = (torch.from_numpy(known[name]) for name in names)
    with torch.inference_mode():
        found = model(vectors, tmd, lengths, relations=relations)
    np.testing.assert_allclose(found.numpy(), known["hedged"], atol=1e-6)


SERVE = """
import json, sys
import mlflow.pyfunc
import numpy as np
if sys.argv[3] == "imported":
    import ocp_mamba.serving.pyfunc
known = np.load(sys.argv[2])
relations = known["relations"]
answer = mlflow.pyfunc.load_model(sys.argv[1]).predict(
    {"seq_vectors": known["vectors"], "tmd": known["tmd"]},
    params={
        "lengths": known["lengths"].tolist(),
        "relation": relations[..., 0].astype(int).ravel().tolist(),
        "confidence": relations[..., 1].astype(float).ravel().tolist(),
    },
)
print(json.dumps(np.asarray(answer).tolist()))
"""


@pytest.mark.parametrize("package", ["fresh", "imported"])
def test_a_model_registered_before_the_move_answers_as_it_did(
    package: str, registered: Path, known: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """In a process of its own, and in one that has this version's package imported already."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE, registered, FIXTURES / "predictions_v1.npz", package],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), known["hedged"], atol=1e-6)
