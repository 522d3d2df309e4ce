"""The compiled kernels equal the mixer's plain torch, in outputs and gradients."""

import math
from pathlib import Path

import pytest
import torch
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba import errors
from ocp_mamba.config import MODEL_SIZES, ModelConfig, TrainConfig
from ocp_mamba.kernels import cpu
from ocp_mamba.model.build import build_model
from ocp_mamba.model.mamba2 import Mamba2Mixer, RMSNorm
from ocp_mamba.training.compile import COMPILE_SECONDS, Compiled, seconds_saved, start_kernels
from ocp_mamba.training.trainer import fit


@pytest.fixture(autouse=True)
def kernels():
    try:
        cpu.use(True)
    except errors.CompileError as error:
        pytest.skip(f"the kernels do not compile here: {error}")
    yield
    cpu.use(False)


def mixer(H, P, N, K, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    made = Mamba2Mixer(
        ModelConfig(d_model=H * P, expand=1, d_state=N, d_conv=K, headdim=P, chunk_size=5)
    ).to(dtype)
    with torch.no_grad():  # values away from their start, so that no gradient is small by chance
        for p in made.parameters():
            p += 0.3 * torch.randn_like(p)
    return made


def run(made, u, weights, compiled):
    cpu.use(compiled)
    out = made(u)
    inputs = [u, *made.parameters()]
    return out, torch.autograd.grad((out * weights).sum(), inputs)


def assert_same(fast, slow, tolerance):
    scale = slow.abs().max().clamp(min=1)
    torch.testing.assert_close(fast / scale, slow / scale, rtol=tolerance, atol=tolerance)


SHAPES = {
    "B": st.integers(1, 5), "H": st.integers(1, 4),
    "L": st.one_of(st.integers(1, 50), st.sampled_from([127, 128, 129, 131, 260])),
    "P": st.sampled_from([1, 3, 8, 16, 19]), "N": st.sampled_from([1, 4, 7, 16, 20]),
    "K": st.integers(1, 5), "seed": st.integers(0, 10_000),
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_kernels_equal_plain_torch_in_outputs_and_gradients(B, L, H, P, N, K, seed):
    made = mixer(H, P, N, K, seed=seed)
    u = torch.randn(B, L, H * P, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(B, L, H * P, dtype=torch.float64)
    (fast, fast_grads), (slow, slow_grads) = (run(made, u, weights, c) for c in (True, False))
    assert_same(fast, slow, 1e-11)
    for a, b in zip(fast_grads, slow_grads, strict=True):
        assert_same(a, b, 1e-10)


@settings(max_examples=15, deadline=None)
@given(**SHAPES)
def test_kernels_in_float32_are_as_exact_as_plain_torch(B, L, H, P, N, K, seed):
    made = mixer(H, P, N, K, torch.float32, seed)
    u = torch.randn(B, L, H * P, requires_grad=True)
    weights = torch.randn(B, L, H * P)
    (fast, fast_grads), (slow, slow_grads) = (run(made, u, weights, c) for c in (True, False))
    assert_same(fast, slow, 1e-4)
    for a, b in zip(fast_grads, slow_grads, strict=True):
        assert_same(a, b, 1e-3)


@settings(max_examples=15, deadline=None)
@given(
    B=st.integers(1, 4),
    L=st.integers(1, 9),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
    first=st.booleans(),
    used=st.sampled_from([(1, 0), (0, 1), (1, 1)]),
)
def test_the_norm_equals_torchs_in_outputs_and_gradients(B, L, width, seed, first, used):
    """Of a sum, but in the first layer; gradients through the norm, the sum, or both."""
    torch.manual_seed(seed)
    norm = RMSNorm(width).double()
    torch.nn.init.normal_(norm.weight)
    x, residual = (torch.randn(B, L, width, dtype=torch.float64, requires_grad=True) for _ in "12")
    weights = torch.randn(2, *x.shape, dtype=torch.float64)
    given = [x, norm.weight] if first else [x, norm.weight, residual]
    results = []
    for compiled in (True, False):
        cpu.use(compiled)
        out, total = norm.add(x, None if first else residual)
        loss = (used[0] * out * weights[0] + used[1] * total * weights[1]).sum()
        results.append((out, total, *torch.autograd.grad(loss, given)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-11, atol=1e-11)


def test_what_is_summed_over_layers_is_not_rounded_to_bf16():
    norm, residual = RMSNorm(32), torch.randn(2, 3, 32, requires_grad=True)
    x = torch.randn(2, 3, 32).bfloat16().requires_grad_()
    results = []
    for compiled in (True, False):
        cpu.use(compiled)
        with torch.autocast("cpu", torch.bfloat16):
            out, total = norm.add(x, residual)
        assert torch.equal(total, residual + x.float())
        gradients = torch.autograd.grad((out.float() * out.float() + total).sum(), [x, residual])
        assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32]
        results.append((out.float(), *gradients))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0.02, atol=0.02)


def test_under_autocast_the_norm_gives_what_the_next_product_takes():
    norm, x = RMSNorm(32), torch.randn(2, 3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = norm(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, norm(x).bfloat16())
    assert norm(x).dtype == torch.float32


@pytest.mark.parametrize("length", [14, 70])
def test_under_bf16_only_what_is_stored_is_rounded(length):
    made = mixer(2, 16, 16, 4, torch.float32)
    u = torch.randn(3, length, 32, requires_grad=True)
    weights = torch.randn(3, length, 32)
    exact, exact_grads = run(made, u, weights, False)
    with torch.autocast("cpu", torch.bfloat16):
        fast, fast_grads = run(made, u, weights, True)
    assert fast.dtype == torch.bfloat16
    for a, b in zip([fast, *fast_grads], [exact, *exact_grads], strict=True):
        assert (a.float() - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("B", [1, 4])
def test_threads_change_nothing_but_the_order_of_sums(threads, B):
    made = mixer(3, 8, 4, 4)
    u = torch.randn(B, 40, 24, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(u)
    slow = run(made, u, weights, False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, again = (run(made, u, weights, True) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    for fast, same, b in zip(
        [first[0], *first[1]], [again[0], *again[1]], [slow[0], *slow[1]], strict=True
    ):
        assert torch.equal(fast, same)
        assert_same(fast, b, 1e-10)


def test_extreme_decay_stays_finite_and_what_is_not_a_number_is_seen():
    made = mixer(2, 16, 4, 4, torch.float32)
    with torch.no_grad():
        made.A_log.fill_(math.log(1e5))
    u = torch.randn(2, 40, 32, requires_grad=True)
    out, grads = run(made, 100 * u, torch.ones(2, 40, 32), True)
    assert all(torch.isfinite(t).all() for t in (out, *grads))
    broken = u.detach().clone()
    broken[0, 3] = float("nan")
    out = made(broken)
    assert out[0, 3:].isnan().all()
    assert torch.isfinite(out[1]).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert made(broken)[0, 3:].isnan().all()


def test_a_norm_of_bf16_rows_reads_them_as_such():
    norm, rows = RMSNorm(32), torch.randn(4, 3, 32).bfloat16()
    fast = norm(rows)
    cpu.use(False)
    torch.testing.assert_close(fast, norm(rows))


def test_a_whole_model_predicts_the_same():
    torch.manual_seed(0)
    model = build_model(MODEL_SIZES["tiny"]).eval()  # whose input layer gives bf16 rows
    x = torch.randn(3, 17, 768)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        low = model.predict_all(x)
    with torch.inference_mode():
        fast = model.predict_all(x)
        cpu.use(False)
        torch.testing.assert_close(fast, model.predict_all(x), rtol=1e-5, atol=1e-5)
    assert float((low * fast).sum(-1).min()) > 0.999


def test_tensors_that_the_kernels_cannot_take_go_to_plain_torch():
    double, single, half = (torch.zeros(1, dtype=d) for d in
                            (torch.float64, torch.float32, torch.bfloat16))  # fmt: skip
    assert cpu.takes(half, single)
    assert not cpu.takes(half, half)
    assert not cpu.takes(single, double)
    assert not cpu.takes(torch.zeros(1, device="meta"), single)
    cpu.use(False)
    assert not cpu.takes(half, single)


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """As on a machine that has not compiled yet."""
    cpu.use(False)
    cpu.library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield monkeypatch
    cpu.library.cache_clear()


@pytest.mark.slow
def test_a_compiler_is_called_once_and_its_work_kept(no_library):
    first = cpu.library()
    assert first.compiled
    assert first.path.parent == cpu.cache_folder()
    assert [p.name for p in first.path.parent.iterdir()] == [first.path.name]
    cpu.library.cache_clear()
    assert not cpu.library().compiled


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("no-such-compiler", "does not start"), ("false", "ended with 1")],
)
def test_a_compiler_that_fails_is_an_error_that_says_why(no_library, compiler, message):
    no_library.setenv("CXX", compiler)
    with pytest.raises(errors.CompileError, match=message):
        cpu.use(True)
    assert not cpu.in_use()


def test_no_compiler_at_all_is_an_error_that_names_them(no_library):
    no_library.delenv("CXX", raising=False)
    no_library.setenv("PATH", "")
    with pytest.raises(errors.CompileError, match=r"g\+\+"):
        cpu.use(True)


SMALL = build_model(ModelConfig(d_model=32, n_layers=1, headdim=16))


def test_auto_compiles_where_it_saves_more_than_it_costs():
    dataset = make_dataset()
    assert start_kernels(SMALL, dataset, TrainConfig()).state == "off"
    assert not cpu.in_use()
    per_epoch = seconds_saved(SMALL.config, dataset, 1)
    many = TrainConfig(max_epochs=math.ceil(COMPILE_SECONDS / per_epoch))
    started = start_kernels(SMALL, dataset, many)
    assert started.state == "on"
    assert started.params()["ran.compile"] == "on"
    assert cpu.in_use()
    assert start_kernels(SMALL, dataset, TrainConfig(compile="off")).state == "off"
    assert not cpu.in_use()


def test_a_failed_compilation_is_said_logged_and_trained_without(no_library, monkeypatch):
    no_library.setenv("CXX", "false")
    monkeypatch.setattr("ocp_mamba.training.compile.COMPILE_SECONDS", 0.0)
    dataset = make_dataset()
    with pytest.warns(UserWarning, match="plain torch, more slowly: false ended with 1"):
        started = start_kernels(SMALL, dataset, TrainConfig())
    assert str(started.params()["ran.compile"]).startswith("failed (false ended with 1")
    with pytest.warns(UserWarning, match="more slowly"):
        fit(
            SMALL, dataset, TrainConfig(max_epochs=1), progress=False,
            validate=lambda m: {"next_vec_cosine": 0.0, "retrieval_p1": 0.0},
        )  # fmt: skip
    with pytest.raises(errors.CompileError):
        start_kernels(SMALL, dataset, TrainConfig(compile="on"))


def test_training_compiled_learns_what_training_in_plain_torch_does():
    losses = {}
    for how in ("on", "off"):
        torch.manual_seed(0)
        model = build_model(SMALL.config)
        fitted = fit(
            model, make_dataset(), TrainConfig(max_epochs=2, precision="float32", compile=how),
            validate=lambda m: {"next_vec_cosine": 0.0}, progress=False,
        )  # fmt: skip
        losses[how] = [r.losses["total"] for r in fitted.history]
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)
    assert losses["on"][1] < losses["on"][0]


def test_what_ran_is_readable():
    assert str(Compiled("on", "it pays", 3.21)) == "compile on (it pays, 3.2 s)"
    assert str(Compiled("off", "asked for")) == "compile off (asked for)"


def test_the_source_travels_with_the_package():
    assert [source.name for source in cpu.SOURCES] == [
        "mixer.cpp", "block.h", "conv.h", "memory_head.h", "simd.h",
    ]  # fmt: skip
    settings_file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    packed = settings_file.read_text(encoding="utf-8")
    assert all(f'"kernels/csrc/*{source.suffix}"' in packed for source in cpu.SOURCES)
