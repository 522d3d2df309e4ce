"""The captured step against the plain one, on a CPU: the same operations, without the graph.

What needs a GPU is in tests/kernels/test_gpu.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from data_maker import make_dataset
from trainings import QUICK, TINY, seeded

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.errors import CompileError
from ocp_mamba.training import compile as compile_
from ocp_mamba.training.capture import step as captured
from ocp_mamba.training.capture.padded import graph_length, padded, padded_losses
from ocp_mamba.training.capture.step import CapturedStep, why_not
from ocp_mamba.training.compile import start_kernels
from ocp_mamba.training.history import is_finite
from ocp_mamba.training.loss import batch_losses
from ocp_mamba.training.negatives import build_negative_pool
from ocp_mamba.training.state import TrainState
from ocp_mamba.training.trainer import fit, make_optimizer, train_step

INFONCE = replace(QUICK, infonce_weight=0.3)
MEMORY = replace(TINY, n_memory=64)
CASES = {
    "cosine": (TINY, QUICK),
    "mixup off": (TINY, replace(QUICK, mixup=0.0)),
    "two concepts of context": (TINY, replace(QUICK, min_context=2)),
    "InfoNCE": (TINY, INFONCE),
    "memory head": (MEMORY, INFONCE),
    "members": (replace(TINY, n_layers=2, members=2), QUICK),
    "TMD": (replace(TINY, d_tmd=16), QUICK),
    "clipped": (TINY, replace(QUICK, grad_clip=1e-3)),
}


def started(model_config, config, dataset):
    """A model with its state, the plain step's bank, and the captured step of a copy."""
    bank = torch.from_numpy(dataset.bank)
    pair = []
    for _ in range(2):
        model = seeded(model_config)
        state = TrainState(model, make_optimizer(model, config), "float32")
        state.negative_pool = build_negative_pool(dataset, config, model.memory_head)
        model.train()
        pair.append(state)
    plain, other = pair
    step = CapturedStep(
        other.model, other.optimizer, "float32", other.negative_pool, bank, config,
        rows=config.batch_size, longest=int(dataset.lengths.max()) - 1,
    )  # fmt: skip
    return plain, other, step, bank


def drawn(dataset, config, bank):
    return batches(
        dataset, "train", config.batch_size, bank=bank, shuffle_seed=1,
        min_context=config.min_context, mixup=config.mixup,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_captured_steps_equal_plain_ones(case, dataset):
    model_config, config = CASES[case]
    plain, other, step, bank = started(model_config, config, dataset)
    lengths = set()
    for number, batch in enumerate(drawn(dataset, config, bank)):
        lr = 1e-3 / (number + 1)
        wanted = train_step(plain, batch, bank, lr, config)
        found = step(batch, lr)
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        lengths.add(graph_length(batch.mask.shape[1], step._longest))
    assert number >= 2
    assert len(lengths) >= 2
    for one, two in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert str(step) == f"on ({', '.join(map(str, sorted(lengths)))} positions)"


def test_loss_and_gradients_of_a_padded_batch_are_those_of_the_batch(dataset):
    model, bank = seeded(), torch.from_numpy(dataset.bank)
    batch = next(drawn(dataset, QUICK, bank))
    B, L = batch.mask.shape
    wide = padded(batch, B + 3, L + 5)
    share = wide.mask / len(batch.all_targets)
    wanted = batch_losses(model, batch, bank, QUICK)["total"]
    found = padded_losses(model, wide, share, bank, QUICK, None)["total"]
    assert found.item() == pytest.approx(wanted.item(), abs=1e-6)
    parameters = list(model.parameters())
    for one, two in zip(
        torch.autograd.grad(wanted, parameters), torch.autograd.grad(found, parameters), strict=True
    ):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


def test_what_padding_holds_does_not_matter(dataset):
    """A graph's places still hold an earlier batch where a later one is padded."""
    model, bank = seeded(), torch.from_numpy(dataset.bank)
    batch = next(drawn(dataset, QUICK, bank))
    B, L = batch.mask.shape
    wide = padded(batch, B + 2, L + 3)
    share = wide.mask / len(batch.all_targets)
    wanted = padded_losses(model, wide, share, bank, QUICK, None)["total"]
    dirty = wide.vectors.clone()
    dirty[B:] = 7.0
    dirty[:, L:] = -3.0
    found = padded_losses(model, replace(wide, vectors=dirty), share, bank, QUICK, None)
    assert found["total"].item() == pytest.approx(wanted.item(), abs=1e-7)


def test_a_batch_that_does_not_fit_is_refused(dataset):
    batch = next(drawn(dataset, QUICK, torch.from_numpy(dataset.bank)))
    with pytest.raises(ValueError, match="does not fit 1 x 1"):
        padded(batch, 1, 1)


@pytest.mark.parametrize("longest", [1, 2, 5, 14, 64, 2048])
def test_lengths_are_few_and_add_at_most_half(longest):
    found = {length: graph_length(length, longest) for length in range(1, longest + 1)}
    assert all(length <= padded <= longest for length, padded in found.items())
    assert all(padded <= max(4, 1.5 * length) for length, padded in found.items())
    assert len(set(found.values())) <= 2 * max(1, longest).bit_length()


def test_the_optimizer_keeps_its_own_settings(dataset):
    """A state to resume from is the same, whichever step ran."""
    plain, other, step, bank = started(TINY, QUICK, dataset)
    for batch in drawn(dataset, QUICK, bank):
        train_step(plain, batch, bank, 1e-3, QUICK)
        step(batch, 1e-3)
    one, two = plain.optimizer.state_dict(), other.optimizer.state_dict()
    for group in two["param_groups"]:
        assert isinstance(group["lr"], float)
        assert group["capturable"] is False
        group["lr"] = 1e-3
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()


def test_a_capture_leaves_weights_and_optimizer_as_they_were(dataset):
    for steps_before in (0, 2):
        _, other, step, bank = started(TINY, QUICK, dataset)
        given = list(drawn(dataset, QUICK, bank))
        for batch in given[:steps_before]:
            step(batch, 1e-3)
        weights = [p.detach().clone() for p in other.model.parameters()]
        states = copy.deepcopy(other.optimizer.state_dict()["state"])
        before = captured._Before(other.model, other.optimizer)
        for batch in given:
            step(batch, 1e-2)
        before.restore()
        for p, value in zip(other.model.parameters(), weights, strict=True):
            assert torch.equal(p, value)
        for number, state in other.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                expected = states[number][name] if steps_before else torch.zeros_like(value)
                assert torch.equal(value, expected)


GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "config", "device", "processes", "reason"),
    [
        (TINY, {}, CPU, 1, "the device is cpu"),
        (TINY, {"compile": "off"}, GPU, 1, "asked for"),
        (TINY, {}, GPU, 2, "several processes"),
        (replace(TINY, dropout=0.1), {}, GPU, 1, "dropout"),
        (replace(TINY, relations=("is a",)), {}, GPU, 1, "relations"),
        (TINY, {"infonce_weight": 0.1, "hard_negatives": 2}, GPU, 1, "hard negatives"),
        (TINY, {"infonce_weight": 0.1, "infonce_candidates": "batch"}, GPU, 1, "of the batch"),
    ],
)
def test_what_cannot_be_captured_is_said(model, config, device, processes, reason):
    assert reason in why_not(seeded(model), replace(QUICK, **config), device, processes)


def test_the_default_training_can_be_captured():
    assert why_not(seeded(), QUICK, GPU) == ""
    assert why_not(torch.nn.Linear(1, 1), QUICK, GPU) == "the model has no Mamba-2 layers"


def test_a_training_says_whether_its_steps_were_captured(dataset):
    fitted = fit(
        seeded(), dataset, replace(QUICK, max_epochs=1), progress=False,
        validate=lambda model: {"next_vec_cosine": 0.5},
    )  # fmt: skip
    assert fitted.capture == "off (the device is cpu)"


class OnGpu(torch.nn.Module):
    """Stands for a model on a GPU."""

    def parameters(self):
        yield torch.empty(0, device="meta")


def test_compile_on_a_gpu_is_the_captured_steps(dataset, monkeypatch):
    model = seeded()
    monkeypatch.setattr(model, "parameters", OnGpu().parameters)
    assert start_kernels(model, dataset, QUICK).state == "off"
    with pytest.raises(CompileError, match="for this training: the device is meta; use compile"):
        start_kernels(model, dataset, replace(QUICK, compile="on"))


@pytest.mark.parametrize("forced", [False, True])
def test_a_failed_capture_is_said_and_changes_nothing(forced, dataset, monkeypatch):
    config = replace(QUICK, compile="on" if forced else "auto")
    _, other, step, bank = started(TINY, config, dataset)
    weights = [p.detach().clone() for p in other.model.parameters()]

    def fails(*args):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(step, "_bank", OnCuda(bank))
    monkeypatch.setattr(torch.cuda, "Stream", fails)
    batch = next(drawn(dataset, config, bank))
    if forced:
        with pytest.raises(CompileError, match=r"not permitted when .* use --compile off"):
            step(batch, 1e-3)
    else:
        with pytest.warns(UserWarning, match="not permitted when stream is capturing.* goes on"):
            assert step(batch, 1e-3) is None
        other.capture = captured.Capture(step, "")
        train_step(other, batch, bank, 0.0, replace(config, weight_decay=0.0))
        assert str(other.capture).startswith("failed (RuntimeError: operation not permitted")
    for p, value in zip(other.model.parameters(), weights, strict=True):
        assert torch.equal(p, value)
    assert all(layer._compiled_call_impl is None for layer in other.model.layers)


def test_compiled_layers_have_one_length(dataset):
    """Each further one would be compiled again."""
    step = started(TINY, replace(QUICK, compile="on"), dataset)[2]
    bank = torch.from_numpy(dataset.bank)
    for batch in drawn(dataset, QUICK, bank):
        step(batch, 1e-3)
    assert str(step) == "on (8 positions, compiled)"
    long = make_dataset(n_chains=20, min_length=140, max_length=150)
    assert "compiled" not in str(started(TINY, replace(QUICK, compile="on"), long)[2])


def test_where_chains_are_too_long_to_compile_that_is_an_error(monkeypatch):
    long, model = make_dataset(n_chains=20, min_length=140, max_length=150), seeded()
    monkeypatch.setattr(compile_, "why_not", lambda *given: "")
    monkeypatch.setattr(model, "parameters", OnGpu().parameters)
    with pytest.raises(CompileError, match=r"the many chunks of 14\d positions; use"):
        start_kernels(model, long, replace(QUICK, compile="on"))


class OnCuda:
    """A bank that says that it is on a GPU."""

    is_cuda = True

    def __init__(self, bank):
        self._bank, self.device = bank, bank.device


def test_a_captured_step_that_is_not_finite_changes_no_weight(dataset):
    _, other, step, bank = started(TINY, QUICK, dataset)
    other.capture = captured.Capture(step, "")
    batch = next(drawn(dataset, QUICK, bank))
    with torch.no_grad():
        kept = other.model.layers[0].mixer.D.clone()
        other.model.layers[0].mixer.D.fill_(float("nan"))
    before = [p.detach().clone() for p in other.model.parameters()]
    values = train_step(other, batch, bank, 1e-3, QUICK)
    assert not is_finite(values)
    for p, value in zip(other.model.parameters(), before, strict=True):
        assert torch.equal(p.isnan(), value.isnan())
        assert torch.equal(p.nan_to_num(), value.nan_to_num())
    with torch.no_grad():
        other.model.layers[0].mixer.D.copy_(kept)
    assert is_finite(train_step(other, batch, bank, 1e-3, QUICK))
    assert not torch.equal(other.model.layers[0].mixer.D, kept)


def test_layers_are_compiled_within_the_block_only():
    model = seeded(ModelConfig(d_model=32, n_layers=2, headdim=16))
    with captured._compiled(model, True):
        assert all(layer._compiled_call_impl is not None for layer in model.layers)
    assert all(layer._compiled_call_impl is None for layer in model.layers)


@pytest.mark.slow
def test_with_compiled_layers_the_step_is_the_same(dataset):
    """Torch's compiler needs about a minute."""
    plain, other, step, bank = started(TINY, QUICK, dataset)
    for batch in list(drawn(dataset, QUICK, bank))[:2]:
        wanted = train_step(plain, batch, bank, 1e-3, QUICK)
        with captured._compiled(other.model, True):
            assert step(batch, 1e-3) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_long_and_short_chains_share_one_captured_step():
    data = make_dataset(n_chains=40, min_length=3, max_length=40, seed=2)
    plain, _, step, bank = started(TINY, QUICK, data)
    for batch in drawn(data, QUICK, bank):
        wanted = train_step(plain, batch, bank, 1e-3, QUICK)
        assert step(batch, 1e-3) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
