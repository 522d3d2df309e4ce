"""The files of a training: what is resumed, and what is refused."""

import pytest
import torch
from checkpoint_files import rewrite
from data_maker import make_dataset
from trainings import QUICK, seeded

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.errors import TrainingError
from ocp_mamba.training.checkpointing import resume_path
from ocp_mamba.training.trainer import fit


class Interruption(Exception):
    pass


def test_an_interrupted_training_resumes_to_the_very_weights(data, validate, tmp_path):
    straight = seeded()
    whole = fit(straight, data, QUICK, validate=validate, progress=False)

    def interrupt(result):
        if result.epoch == 2:
            raise Interruption

    path = tmp_path / "model.pt"
    with pytest.raises(Interruption):
        fit(seeded(), data, QUICK, validate=validate, output=path, on_epoch=interrupt,
            progress=False)  # fmt: skip
    assert resume_path(path).exists()
    resumed = seeded(seed=9)
    result = fit(resumed, data, QUICK, validate=validate, output=path, resume=True, progress=False)
    assert [r.val for r in result.history] == [r.val for r in whole.history]
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resume_path(path).exists(), "whoever tracks the training removes it at the run's end"


def test_what_does_not_fit_is_not_resumed(data, validate, tmp_path):
    path = tmp_path / "model.pt"

    def resume(model=None, dataset=data, config=QUICK, output=path):
        model = model or seeded()
        fit(model, dataset, config, validate=validate, output=output, resume=True, progress=False)

    def interrupt(result):
        raise Interruption

    with pytest.raises(TrainingError, match="no such file"):
        resume()
    with pytest.raises(TrainingError, match="without an output"):
        resume(output=None)
    with pytest.raises(Interruption):
        fit(seeded(), data, QUICK, validate=validate, output=path, on_epoch=interrupt,
            progress=False)  # fmt: skip
    with pytest.raises(TrainingError, match=r"train.max_epochs was 3, now 9"):
        resume(config=TrainConfig(max_epochs=9))
    with pytest.raises(TrainingError, match=r"model.n_layers was 1, now 2"):
        resume(model=seeded(ModelConfig(d_model=32, n_layers=2, headdim=16)))
    with pytest.raises(TrainingError, match="dataset was "):
        resume(dataset=make_dataset(n_chains=50, seed=8))


@pytest.fixture
def interrupted(data, validate, tmp_path):
    """The output of a training that was interrupted after its first epoch."""

    def interrupt(result):
        raise Interruption

    path = tmp_path / "model.pt"
    with pytest.raises(Interruption):
        fit(seeded(), data, QUICK, validate=validate, output=path, on_epoch=interrupt,
            progress=False)  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loop: loop["train_config"].update(ema=0.9), "has the setting ema, which this"),
        (lambda loop: loop["history"][0].update(steps=7), "has the entry of an epoch steps, which"),
        (lambda loop: loop["train_config"].update(lr=-1.0), "its settings: lr must be positive"),
        (lambda loop: loop.pop("optimizer"), r"no state of a training \(optimizer is missing"),
    ],
)
def test_a_state_of_another_version_is_refused_by_name(
    data, validate, interrupted, change, message
):
    state = resume_path(interrupted)
    loop = torch.load(state, weights_only=True)["loop"]
    change(loop)
    rewrite(state, loop=loop)
    with pytest.raises(TrainingError, match=message) as refused:
        fit(seeded(), data, QUICK, validate=validate, output=interrupted, resume=True,
            progress=False)  # fmt: skip
    assert str(refused.value).startswith(f"cannot resume {state}: ")
    assert "ema" not in message or "start again without --resume" in str(refused.value)
