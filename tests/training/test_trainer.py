from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from data_maker import make_dataset
from trainings import QUICK, TINY, seeded

from ocp_mamba import stats
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.data.chunks import train_targets
from ocp_mamba.errors import TrainingError
from ocp_mamba.model.checkpoint import load_checkpoint, load_model
from ocp_mamba.training.checkpointing import resume_path
from ocp_mamba.training.loss import batch_losses
from ocp_mamba.training.negatives import build_negative_pool
from ocp_mamba.training.schedule import learning_rate, make_plan
from ocp_mamba.training.state import TrainState
from ocp_mamba.training.trainer import fit, make_optimizer, resolve_precision, train_step


@pytest.mark.parametrize("infonce_weight", [0.0, 0.5])
@pytest.mark.parametrize("d_tmd", [0, 16])
def test_packed_chains_are_exactly_one_prefix_per_example(data, infonce_weight, d_tmd):
    """Loss and gradient of a packed batch against the same sequences, each a row of its own."""
    config = TrainConfig(infonce_weight=infonce_weight, temperature=0.1)
    model = seeded(ModelConfig(d_model=32, n_layers=1, headdim=16, d_tmd=d_tmd)).double()
    bank = torch.from_numpy(data.bank).double()
    batch = next(batches(data, "train", 16, bank=bank, shuffle_seed=1))
    tmd = batch.tmd.double()
    object.__setattr__(batch, "tmd", tmd)

    rows, lengths, target_ids, codes = [], [], [], []
    for b in range(len(batch.lengths)):
        for t in range(int(batch.lengths[b])):
            if batch.mask[b, t]:
                rows.append(batch.vectors[b, : t + 1])
                lengths.append(t + 1)
                target_ids.append(int(batch.targets[b, t]))
                codes.append(tmd[b])
    assert len(rows) == int(batch.mask.sum()) > 16
    padded = torch.stack([F.pad(r, (0, 0, 0, max(lengths) - len(r))) for r in rows])
    predictions = model(padded, torch.stack(codes) if d_tmd else None, torch.tensor(lengths))
    targets = bank[target_ids]
    alone = (1 - (predictions * targets).sum(-1)).mean()
    if infonce_weight:
        distinct = sorted(set(target_ids))
        logits = predictions @ bank[distinct].T / 0.1
        labels = torch.tensor([distinct.index(i) for i in target_ids])
        alone = alone + infonce_weight * F.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(alone, list(model.parameters()))

    packed = batch_losses(model, batch, bank, config)["total"]
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(packed, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("candidates", ["batch", "train"])
def test_mixed_chains_are_taught_both_targets_by_their_weights(data, candidates):
    """Loss of a mixed batch against a loop over its positions."""
    shape = {"d_model": 32, "n_layers": 1, "headdim": 16, "n_memory": 99}
    model = seeded(ModelConfig(**shape, memory_temperature=0.1)).double()
    config = TrainConfig(infonce_weight=0.5, infonce_candidates=candidates, temperature=0.1)
    bank = torch.from_numpy(data.bank).double()
    drawn = {"shuffle_seed": 1, "min_context": 1, "mixup": 1.0}
    batch = next(batches(data, "train", 8, bank=bank, **drawn))
    negative_pool = build_negative_pool(data, config, model.memory_head)
    assert negative_pool.is_memory == (candidates == "train")
    assert torch.equal(model.memory_head.memory, bank[train_targets(data, 1)])
    h = model.predict_members(batch.vectors)[0]
    p = model.predict_all(batch.vectors)
    ids = negative_pool.candidates(batch.all_targets).tolist()
    losses = []
    for b, t in batch.mask.nonzero().tolist():
        w = batch.mix.weight[b, t].double()
        own, other = int(batch.targets[b, t]), int(batch.mix.targets[b, t])
        cosine = 1 - F.cosine_similarity(p[b, t], w * bank[own] + (1 - w) * bank[other], dim=0)
        scores = (bank[ids] @ h[b, t] / 0.1).log_softmax(0)
        nce = -w * scores[ids.index(own)] - (1 - w) * scores[ids.index(other)]
        losses.append(cosine + 0.5 * nce)
    for given in (negative_pool, replace(negative_pool, is_memory=False)):  # one softmax, or two
        found = batch_losses(model, batch, bank, config, given)["total"]
        torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_a_gradient_that_is_too_long_is_shortened_and_no_other(data, share):
    """A step of plain gradient descent moves the weights by the rate times what is left of it."""
    bank = torch.from_numpy(data.bank)
    batch = next(batches(data, "train", 16, bank=bank, shuffle_seed=1))
    model = seeded()
    gradients = torch.autograd.grad(
        batch_losses(model, batch, bank, QUICK)["total"], model.parameters()
    )
    length = torch.cat([g.flatten() for g in gradients]).norm().item()
    before = [p.detach().clone() for p in model.parameters()]
    state = TrainState(model, torch.optim.SGD(model.parameters()), "float32")
    config = replace(QUICK, grad_clip=share * length)
    assert train_step(state, batch, bank, 0.5, config)["grad_norm"] == pytest.approx(length)
    for old, new, g in zip(before, model.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new, 0.5 * min(share, 1) * g, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("candidates", ["batch", "train"])
def test_each_member_is_taught_by_its_own_loss(data, candidates):
    shape = {"d_model": 32, "headdim": 16}
    model = seeded(ModelConfig(n_layers=2, members=2, **shape)).double()
    bank = torch.from_numpy(data.bank).double()
    batch = next(batches(data, "train", 16, bank=bank, shuffle_seed=1))
    config = TrainConfig(infonce_weight=0.5, infonce_candidates=candidates)
    negative_pool = build_negative_pool(data, config)
    together = batch_losses(model, batch, bank, config, negative_pool)
    apart = []
    for member in range(2):
        alone = seeded(ModelConfig(n_layers=1, **shape)).double()
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("layers")}
        layer = model.layers[member].state_dict()
        alone.load_state_dict(weights | {f"layers.0.{k}": v for k, v in layer.items()})
        apart.append(batch_losses(alone, batch, bank, config, negative_pool))
    for name, loss in together.items():
        mean = (apart[0][name] + apart[1][name]) / 2
        torch.testing.assert_close(loss, mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("candidates", ["batch", "train"])
def test_a_hard_negative_that_is_a_candidate_or_none_is_not_counted(data, candidates):
    """InfoNCE of a batch with hard negatives against a loop over its positions."""
    model = seeded(TINY).double()
    config = TrainConfig(
        infonce_weight=0.5, infonce_candidates=candidates, hard_negatives=40, temperature=0.1
    )
    bank = torch.from_numpy(data.bank).double()
    batch = next(batches(data, "train", 4, bank=bank, shuffle_seed=1, min_context=1))
    negative_pool = build_negative_pool(data, config)
    h = model.predict_members(batch.vectors)[0]
    told_from = set(negative_pool.candidates(batch.all_targets).tolist())
    losses, skipped = [], 0
    for b, t in batch.mask.nonzero().tolist():
        own = int(batch.targets[b, t])
        (mined,) = negative_pool.hard.of(
            batch.inputs[b, t][None], batch.targets[b, t][None]
        ).tolist()
        ids = [own, *sorted((told_from | set(mined)) - {own, -1})]
        skipped += len(told_from & set(mined)) + mined.count(-1)
        losses.append(F.cross_entropy((bank[ids] @ h[b, t] / 0.1)[None], torch.tensor([0])))
    assert skipped
    found = batch_losses(model, batch, bank, config, negative_pool)["infonce"]
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-9, atol=1e-10)


def test_all_train_targets_are_harder_to_tell_from_than_the_batchs(data):
    model, bank = seeded(), torch.from_numpy(data.bank)
    batch = next(batches(data, "train", 4, bank=bank, shuffle_seed=1))
    few, many = (
        batch_losses(model, batch, bank, config, build_negative_pool(data, config))["infonce"]
        for config in (
            TrainConfig(infonce_weight=0.5, infonce_candidates=c) for c in ("batch", "train")
        )
    )
    assert many > few


def test_fit_learns_and_leaves_the_best_epochs_weights(data, validate, tmp_path):
    model, seen = seeded(), []
    path = tmp_path / "model.pt"
    result = fit(
        model, data, QUICK, validate=validate, output=path, on_epoch=seen.append, progress=False
    )
    losses = [r.losses["total"] for r in result.history]
    assert losses[-1] < losses[0]
    assert [r.epoch for r in seen] == [1, 2, 3]
    assert [r.is_last for r in seen] == [False, False, True]
    cosines = [r.val["next_vec_cosine"] for r in result.history]
    assert [r.improvement_trend for r in seen] == [None, None, stats.slope(cosines)]
    assert result.best_cosine == max(cosines)
    assert result.best_epoch == cosines.index(max(cosines)) + 1
    assert validate(model.eval())["next_vec_cosine"] == pytest.approx(result.best_cosine)
    saved = load_checkpoint(path)
    assert saved.loop["epoch"] == result.best_epoch
    assert saved.dataset_fingerprint == data.fingerprint
    assert validate(load_model(path)) == pytest.approx(validate(model))
    assert resume_path(path).exists(), "whoever tracks the training removes it at the run's end"


@pytest.mark.parametrize("most", [99, 5])
def test_a_model_remembers_the_train_splits_targets_and_its_file_does(
    data, validate, tmp_path, most
):
    model = seeded(ModelConfig(d_model=32, n_layers=1, headdim=16, n_memory=most))
    config = TrainConfig(max_epochs=1, batch_size=16)
    fit(model, data, config, validate=validate, output=tmp_path / "m.pt", progress=False)
    targets = {int(c) for i in data.chains_in("train") for c in data.chain(i)[1:]}
    known = {data.bank[c].tobytes() for c in targets}
    memory = model.memory_head.memory
    assert len(memory) == min(most, len(targets))
    assert len({row.numpy().tobytes() for row in memory} & known) == len(memory)
    assert torch.equal(load_model(tmp_path / "m.pt").memory_head.memory, memory)


def test_same_seed_same_training_another_seed_another(data, validate):
    def train(seed):
        model = seeded(seed=seed)
        config = TrainConfig(
            batch_size=16, max_epochs=2, lr=3e-3, precision="float32", seed=seed, infonce_weight=0.1
        )
        fit(model, data, config, validate=validate, progress=False)
        return model.output.weight

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))


def test_a_curriculum_learns_short_chains_first_and_is_told(data, validate):
    config = replace(QUICK, curriculum=0.5, max_epochs=4)
    result = fit(seeded(), data, config, validate=validate, progress=False)
    longest = [r.longest_chain for r in result.history]
    assert longest[2:] == [None, None]
    assert 3 <= longest[0] < longest[1] < 9
    total = make_plan(data, config).total_steps
    assert result.history[-1].lr == learning_rate(total - 1, total, config), "the very last step's"


def test_hard_negatives_change_the_loss_and_are_mined_for_every_example(data, validate):
    def last_loss(hard):
        config = replace(
            QUICK, infonce_weight=0.5, infonce_candidates="batch", hard_negatives=hard, max_epochs=1
        )
        return fit(seeded(), data, config, validate=validate, progress=False).history[0].losses

    plain, hard = last_loss(0), last_loss(4)
    assert hard["infonce"] > plain["infonce"], "more candidates, and harder ones"


def test_the_trend_is_the_slope_over_all_epochs(data):
    """A run that ends on a plateau has a positive trend; one that declines has a negative one."""

    def trends(*cosines):
        scores = iter(cosines)
        config = replace(QUICK, batch_size=64, max_epochs=len(cosines))
        result = fit(
            seeded(), data, config, validate=lambda model: {"next_vec_cosine": next(scores)},
            progress=False,
        )  # fmt: skip
        return [r.improvement_trend for r in result.history]

    plateau = trends(0.10, 0.50, 0.60, 0.62, 0.61, 0.60)
    assert plateau[:2] == [None, None], "fewer epochs than trend_epochs"
    assert plateau[-1] == pytest.approx(stats.slope([0.10, 0.50, 0.60, 0.62, 0.61, 0.60]))
    assert plateau[-1] > 0
    assert trends(0.6, 0.5, 0.55, 0.4)[-1] < 0


def test_early_stopping_keeps_the_best_epoch(data):
    scores = iter([0.1, 0.5, 0.5, 0.45, 0.3, 0.9])  # a tie is no better epoch
    config = TrainConfig(batch_size=64, max_epochs=6, patience=2, precision="float32")
    result = fit(
        seeded(),
        data,
        config,
        validate=lambda model: {"next_vec_cosine": next(scores)},
        progress=False,
    )
    assert len(result.history) == 4
    assert result.stopped_early
    assert (result.best_epoch, result.best_cosine) == (2, 0.5)
    assert [r.is_best for r in result.history] == [True, True, False, False]
    assert [r.is_last for r in result.history] == [False, False, False, True]


def test_an_empty_train_split_is_refused(validate):
    import numpy as np

    emptied = make_dataset(n_chains=10, split=np.ones(10, np.uint8))
    with pytest.raises(TrainingError, match="train split has no examples"):
        fit(seeded(), emptied, QUICK, validate=validate, progress=False)


def test_only_matrices_decay():
    optimizer = make_optimizer(seeded(), TrainConfig(weight_decay=0.3))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]


def test_bf16_trains_to_nearly_the_same_loss(data, validate):
    def last_loss(precision):
        config = TrainConfig(batch_size=16, max_epochs=2, lr=3e-3, precision=precision)
        model = seeded()
        result = fit(model, data, config, validate=validate, progress=False)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        return result.history[-1].losses["total"]

    assert last_loss("bf16") == pytest.approx(last_loss("float32"), rel=0.02)


def test_precision_auto_reads_the_processor(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_precision("float32", cpu) == "float32"
    for flags, expected in [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"),
                            ({"avx512_f": True}, "float32"), ({}, "float32")]:  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert resolve_precision("auto", cpu) == expected


def test_the_progress_bar_shows_cosine_and_time_left(data, validate, capsys):
    fit(seeded(), data, QUICK, validate=validate, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 3/3" in shown
    assert "val_next_vec_cosine=" in shown
    assert "<" in shown  # elapsed<left
