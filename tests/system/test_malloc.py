"""In a process of its own: what this one's heap looks like depends on all tests before."""

import subprocess
import sys

import pytest

from ocp_mamba.system import malloc

COUNT = """
import resource, sys
from contextlib import nullcontext
import torch
from ocp_mamba.system import malloc

def step():
    for _ in range(8):
        torch.ones(3_000_000)  # 12 MB: 2,930 pages
    held = [torch.ones(3_000_000) for _ in range(4)]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

torch.set_num_threads(1)
small = resident()
with malloc.freed_is_kept():
    for _ in range(4):
        step()
    print(resident() - small, faults())
print(resident() - small, faults())
"""


@pytest.mark.skipif(malloc._glibc() is None, reason="the C library is not glibc")
def test_within_the_block_pages_are_used_again_and_after_it_given_back():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    (held, used_again), (left, anew) = (map(int, x.split()) for x in done.stdout.splitlines())
    assert held > 40e6
    assert used_again < 300
    assert left < 20e6
    assert anew > 3_000


def test_where_the_c_library_is_another_one_nothing_is_done(monkeypatch):
    monkeypatch.setattr(malloc, "_glibc", lambda: None)
    with malloc.freed_is_kept():
        malloc.give_back_freed()
