"""Which backend runs, and that nothing falls back in silence; no GPU is needed for any of it."""

import warnings

import pytest
import torch

from ocp_mamba.errors import BackendError
from ocp_mamba.kernels import backend, cuda
from ocp_mamba.kernels.backend import resolve_backend, resolve_device, use_backend


@pytest.fixture
def kernels(monkeypatch):
    """Say what is missing in the eyes of the backend; "" for nothing."""

    def say(reason):
        monkeypatch.setattr(cuda, "missing", lambda: reason)

    monkeypatch.setattr(backend, "_requested", "auto")
    return say


NO_PACKAGE = "the package mamba-ssm cannot be imported (No module named 'mamba_ssm')"


def test_a_cpu_has_plain_torch_and_says_so():
    assert resolve_backend() == "torch"
    assert resolve_backend("torch") == "torch"
    with pytest.raises(BackendError, match=r"'cuda' was forced, but the device is cpu; use"):
        resolve_backend("cuda")


def test_auto_takes_the_kernels_on_a_gpu(kernels):
    kernels("")
    for requested in ("auto", "cuda"):
        assert resolve_backend(requested, "cuda") == "cuda"
        assert resolve_backend(requested, torch.device("cuda", 0)) == "cuda"
    assert resolve_backend("torch", "cuda") == "torch"


def test_auto_without_kernels_warns_with_the_way_out(kernels):
    kernels(NO_PACKAGE)
    with pytest.warns(UserWarning, match="plain torch, because the package mamba-ssm") as caught:
        assert resolve_backend("auto", "cuda") == "torch"
    assert cuda.INSTALL in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_backend("torch", "cuda") == "torch"


def test_forced_and_missing_is_an_error_that_names_package_and_install_line(kernels):
    kernels(NO_PACKAGE)
    with pytest.raises(BackendError, match="forced, but the package mamba-ssm") as caught:
        resolve_backend("cuda", "cuda")
    assert cuda.INSTALL in str(caught.value)


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
    kernels("")
    assert backend.kernels_run(OnGpu())
    assert not backend.kernels_run(OnGpu(torch.float64))
    assert use_backend("torch", "cuda") == "torch"
    assert not backend.kernels_run(OnGpu())
    assert use_backend("cuda", "cuda") == "cuda"
    assert backend.kernels_run(OnGpu())
    assert not backend.kernels_run(torch.zeros(1))
    with pytest.raises(BackendError):
        use_backend("cuda", "cpu")


def test_without_a_gpu_nothing_is_imported_to_find_out():
    if not torch.cuda.is_available():
        assert cuda.missing.__wrapped__() == "torch sees no CUDA device"
