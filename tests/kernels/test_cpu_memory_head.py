from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba import errors
from ocp_mamba.kernels import cpu, cpu_memory_head


def unit(*shape: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1)


def plain(queries, memory, temperature):
    memory = memory.to(queries.dtype)
    return (queries @ memory.T / temperature).softmax(dim=-1).mean(dim=0) @ memory


@given(
    n=st.integers(1, 70),
    M=st.integers(1, 7),
    width=st.integers(1, 40),
    temperature=st.floats(0.002, 1),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_recalling_in_one_pass_equals_plain_torch(n, M, width, temperature, threads, seed):
    queries, memory = unit(M, width, seed=seed), unit(n, width, seed=seed + 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = cpu_memory_head.read_memory(queries, memory, temperature)
        single = cpu_memory_head.read_memory(queries.float(), memory.float(), temperature)
        rounded = cpu_memory_head.read_memory(queries.float(), memory.bfloat16(), temperature)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(exact, plain(queries, memory, temperature), rtol=1e-11, atol=1e-12)
    for found, theirs in ((single, memory.float()), (rounded, memory.bfloat16())):
        expected = plain(queries.float(), theirs, temperature)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 / temperature * 0.05)


def test_what_is_not_a_number_is_seen():
    queries = unit(3, 32, seed=0)
    queries[1, 4] = float("nan")
    for kind in (torch.float32, torch.float64):
        found = cpu_memory_head.read_memory(queries.to(kind), unit(20, 32, seed=1).to(kind), 0.05)
        assert found.isnan().all()


def test_without_a_compiler_a_warning_says_so_and_the_kernel_is_not_taken(monkeypatch):
    def refuse():
        raise errors.CompileError("no C++ compiler found")

    monkeypatch.setattr(cpu, "library", refuse)
    monkeypatch.setattr(cpu_memory_head, "_prepared", False)
    with pytest.warns(UserWarning, match="not by its own kernel: no C"):
        cpu_memory_head.prepare()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not cpu_memory_head.takes(torch.zeros(3, 1, 8), torch.zeros(5, 8))


def test_it_is_for_one_position_of_a_compiled_step_on_a_cpu(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cpu_memory_head.prepare()
    one, memory = torch.zeros(3, 1, 8), torch.zeros(5, 8)
    assert not cpu_memory_head.takes(one, memory)  # not compiling
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert cpu_memory_head.takes(one, memory)
    assert cpu_memory_head.takes(one, memory.bfloat16())
    assert not cpu_memory_head.takes(torch.zeros(3, 2, 8), memory)
    assert not cpu_memory_head.takes(one.bfloat16(), memory)
    assert not cpu_memory_head.takes(one, memory.half())
