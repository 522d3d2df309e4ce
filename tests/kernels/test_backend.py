"""Which backend runs, and that nothing falls back in silence; no GPU is needed for any of it."""

import warnings

import pytest
import torch

from ocp_mamba.errors import BackendError
from ocp_mamba.kernels import backend, cuda
from ocp_mamba.kernels.backend import described, resolve_backend, resolve_device, use_backend
from ocp_mamba.kernels.cuda import Part


@pytest.fixture
def kernels(monkeypatch):
    """Say which parts have kernels in the eyes of the backend, by their sources."""

    def say(scan=MAMBA, step=MAMBA, convolution=CONV):
        found = {cuda.SCAN: scan, cuda.STEP: step, cuda.CONVOLUTION: convolution}
        monkeypatch.setattr(cuda, "parts", lambda: found)

    monkeypatch.setattr(backend, "_requested", "auto")
    return say


MAMBA, CONV = Part("mamba_ssm"), Part("causal_conv1d")
NO_PACKAGE = Part(
    "torch",
    "the package mamba-ssm cannot be imported (No module named 'mamba_ssm')",
    f"`{cuda.INSTALL}`",
)
NO_CONV = Part("torch", "the package causal-conv1d cannot be imported", f"`{cuda.INSTALL_CONV}`")


def test_a_cpu_has_plain_torch_and_says_so():
    assert resolve_backend() == "torch"
    assert resolve_backend("torch") == "torch"
    with pytest.raises(BackendError, match=r"'cuda' was forced, but the device is cpu; use"):
        resolve_backend("cuda")


def test_auto_takes_the_kernels_on_a_gpu(kernels):
    kernels()
    for requested in ("auto", "cuda"):
        assert resolve_backend(requested, "cuda") == "cuda"
        assert resolve_backend(requested, torch.device("cuda", 0)) == "cuda"
    assert resolve_backend("torch", "cuda") == "torch"


def test_each_part_is_named(kernels):
    kernels(convolution=Part("triton", "the package causal-conv1d cannot be imported"))
    assert cuda.missing() == ""
    assert described("auto", "cuda") == "cuda (scan mamba_ssm, step mamba_ssm, convolution triton)"
    assert described("torch", "cuda") == described("auto", "cpu") == "torch"


def test_auto_without_kernels_warns_with_the_way_out(kernels):
    kernels(NO_PACKAGE, NO_PACKAGE, NO_CONV)
    with pytest.warns(UserWarning, match="the model runs on the GPU without CUDA") as caught:
        assert resolve_backend("auto", "cuda") == "torch"
    text = str(caught[0].message)
    assert "the scan and the step have no kernels: the package mamba-ssm" in text
    assert "the convolution has no kernels: the package causal-conv1d" in text
    assert cuda.INSTALL in text
    assert cuda.INSTALL_CONV in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_backend("torch", "cuda") == "torch"


def test_auto_takes_the_kernels_that_there_are(kernels):
    kernels(NO_PACKAGE, NO_PACKAGE)
    with pytest.warns(UserWarning, match=r"^a part of the model runs .* the scan and the step"):
        assert resolve_backend("auto", "cuda") == "cuda"
    assert cuda.described() == "scan torch, step torch, convolution causal_conv1d"
    assert backend.kernels_run(OnGpu(), cuda.CONVOLUTION)
    assert not backend.kernels_run(OnGpu(), cuda.SCAN)


def test_forced_and_missing_is_an_error_that_names_the_part_and_the_install_line(kernels):
    kernels(step=NO_PACKAGE)
    with pytest.raises(BackendError, match="forced, but the step has no kernels: the") as caught:
        resolve_backend("cuda", "cuda")
    assert cuda.INSTALL in str(caught.value)
    assert "scan" not in str(caught.value)


def test_an_unknown_name_is_refused():
    with pytest.raises(BackendError, match="'gru' is unknown; choose one of auto, torch, cuda"):
        resolve_backend("gru")
    with pytest.raises(BackendError, match="'tpu' is unknown; choose one of auto, cpu, cuda"):
        resolve_device("tpu")


@pytest.mark.parametrize("found", [False, True])
def test_device_auto_is_the_gpu_where_there_is_one(found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert resolve_device().type == ("cuda" if found else "cpu")
    assert resolve_device("cpu").type == "cpu"
    if found:
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(BackendError, match=r"'cuda' was forced, but torch .* no CUDA device"):
            resolve_device("cuda")


class OnGpu:
    """Stands for a tensor on a GPU."""

    is_cuda = True

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype


def test_what_is_used_decides_for_the_whole_process(kernels):
    kernels()
    assert backend.kernels_run(OnGpu(), cuda.SCAN)
    assert not backend.kernels_run(OnGpu(torch.float64), cuda.SCAN)
    assert use_backend("torch", "cuda") == "torch"
    assert not backend.kernels_run(OnGpu(), cuda.SCAN)
    assert use_backend("cuda", "cuda") == "cuda"
    assert backend.kernels_run(OnGpu(), cuda.STEP)
    assert not backend.kernels_run(torch.zeros(1), cuda.STEP)
    with pytest.raises(BackendError):
        use_backend("cuda", "cpu")


def test_without_a_gpu_nothing_is_imported_to_find_out():
    if not torch.cuda.is_available():
        assert cuda.parts.__wrapped__()[cuda.SCAN].why == "torch sees no CUDA device"
