from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.kernels.cosine import cosine_to, normalize

SHAPES = st.sampled_from([(1, 1), (3, 8), (2, 3, 5), (2, 2, 3, 16)])


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gradient(function, rows, weights):
    rows = rows.clone().requires_grad_()
    out = function(rows)
    return out, *torch.autograd.grad((out * weights).sum(), rows)


@given(shape=SHAPES, seed=st.integers(0, 99), size=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_unit_and_its_gradient_are_those_of_torch(shape, seed, size):
    rows, weights = size * drawn(*shape, seed=seed), drawn(*shape, seed=seed + 1)
    ours, theirs = (
        with_gradient(function, rows, weights)
        for function in (normalize, lambda x: F.normalize(x, dim=-1))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(normalize(rows), ours[0], rtol=0, atol=1e-15)


@given(shape=SHAPES, seed=st.integers(0, 99), size=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_the_cosine_and_its_gradient_are_those_of_torch(shape, seed, size):
    rows, targets = size * drawn(*shape, seed=seed), drawn(*shape[-2:], seed=seed + 1) / size
    weights = drawn(*shape[:-1], seed=seed + 2)
    ours = with_gradient(lambda x: cosine_to(targets, x), rows, weights)
    theirs = with_gradient(lambda x: F.cosine_similarity(x, targets, dim=-1, eps=0), rows, weights)
    assert ours[0].shape == shape[:-1]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_row_of_zeros_has_no_direction_and_a_finite_gradient():
    rows = torch.zeros(2, 4, requires_grad=True)
    assert not normalize(rows).any()
    (along,) = torch.autograd.grad(normalize(rows).sum(), rows)
    found = cosine_to(torch.ones(2, 4), rows)
    (back,) = torch.autograd.grad(found.sum(), rows)
    assert not found.any()
    assert along.isfinite().all()
    assert back.isfinite().all()


@pytest.mark.parametrize("learns", [False, True])
def test_rows_of_half_precision_come_out_in_what_was_asked_for(learns):
    rows = drawn(3, 8, seed=0).bfloat16().requires_grad_(learns)
    found = normalize(rows, torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.normalize(rows.float(), dim=-1))
    assert normalize(rows).dtype == torch.bfloat16
    if learns:
        (along,) = torch.autograd.grad(found.sum(), rows)
        assert along.dtype == torch.bfloat16
