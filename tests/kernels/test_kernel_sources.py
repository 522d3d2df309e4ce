"""Where the CUDA kernels come from: mamba_ssm without its own ``__init__``, and Triton's parts.

The real packages are used where they are installed; no GPU is needed, since Triton's interpreter
runs kernels on a CPU: ``TRITON_INTERPRET=1 python -m pytest tests/kernels/test_kernel_sources.py``.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

from ocp_mamba.kernels import cuda, ops

PACKAGE = {
    "__init__.py": "raise ImportError('selective_scan_cuda')\n",
    "ops/__init__.py": "",
    "ops/triton/__init__.py": "",
    "ops/triton/helper.py": "SIX = 6\n",
    "ops/triton/ssd_combined.py": "from mamba_ssm.ops.triton.helper import SIX\n",
    "ops/triton/broken.py": "import a_package_that_is_not_there\n",
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A package mamba_ssm whose ``__init__`` fails, as it does without its compiled parts."""
    for name, text in PACKAGE.items():
        path = tmp_path / "mamba_ssm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if "mamba_ssm" in name}
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if "mamba_ssm" in name]:
        del sys.modules[name]
    sys.modules.update(before)


def test_a_module_is_imported_past_an_init_that_fails(broken):
    with pytest.raises(ImportError, match="selective_scan_cuda"):
        import mamba_ssm  # noqa: F401
    assert cuda.mamba_ssm_module("ops.triton.ssd_combined").SIX == 6
    assert "mamba_ssm" not in sys.modules  # the package's own import is not faked
    assert cuda.mamba_ssm_module("ops.triton.ssd_combined").SIX == 6


def test_what_a_module_lacks_is_an_error_and_leaves_nothing(broken):
    with pytest.raises(ImportError, match="a_package_that_is_not_there"):
        cuda.mamba_ssm_module("ops.triton.broken")
    assert "mamba_ssm" not in sys.modules
    part = cuda._mamba_ssm_part("ops.triton.broken")
    assert part.by == "torch"
    assert "a_package_that_is_not_there" in part.why
    assert cuda.INSTALL in part.way_out


def test_a_package_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(cuda, "MAMBA_SSM", "mamba_ssm_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="No module named 'mamba_ssm_that_is_not_there'"):
        cuda.mamba_ssm_module("ops")


def test_the_real_package_is_imported_from_its_python_sources_alone():
    pytest.importorskip("triton", reason="triton is not installed: not-run")
    if not cuda.importlib.util.find_spec("mamba_ssm"):
        pytest.skip("mamba_ssm is not installed: not-run")
    for module, name in (
        (cuda.SCAN_MODULE, "mamba_chunk_scan_combined"),
        (cuda.STEP_MODULE, "selective_state_update"),
        ("modules.mamba2", "Mamba2"),
    ):
        assert callable(getattr(cuda.mamba_ssm_module(module), name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "L", "C", "K"), [(1, 1, 5, 4), (2, 14, 70, 4), (1, 40, 65, 3)])
def test_the_triton_convolution_by_its_interpreter(dtype, B, L, C, K):
    pytest.importorskip("triton", reason="triton is not installed: not-run")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's interpreter is off (TRITON_INTERPRET=1 turns it on): not-run")
    from ocp_mamba.kernels.triton_conv import causal_conv1d

    torch.manual_seed(0)
    x = torch.randn(B, L, C + 9, dtype=dtype)[..., 3 : 3 + C].detach().requires_grad_()
    given = [x, torch.randn(C, K, requires_grad=True), torch.randn(C, requires_grad=True)]
    weights = torch.linspace(-1, 1, B * L * C).view(B, L, C)
    found, wanted = [], []
    for call, to, results in (
        (causal_conv1d, lambda t: t, found),
        (ops.causal_conv1d, torch.Tensor.float, wanted),
    ):
        y = call(*map(to, given))
        results += [y, *torch.autograd.grad((y.float() * weights).sum(), given)]
    for one, two in zip(found, wanted, strict=True):
        error = (one.float() - two.float()).abs().max() / two.float().abs().max()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
