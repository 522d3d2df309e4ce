import numpy as np
import pytest

from ocp_mamba.retrieval import BankIndex


def rows(n, seed=0):
    made = np.random.default_rng(seed).standard_normal((n, 768)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_search_is_the_exact_matrix_product():
    bank, queries = rows(300), rows(20, seed=1)
    scores, ids = BankIndex(bank).search(queries, 5)
    products = queries @ bank.T
    expected = np.argsort(-products, axis=1)[:, :5]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), atol=1e-5)


def test_no_more_rows_than_the_bank_has():
    index = BankIndex(rows(3))
    assert index.size == 3
    assert index.search(rows(2, seed=1), 10)[1].shape == (2, 3)


@pytest.mark.parametrize("bank", [np.zeros((0, 768), np.float32), np.zeros(768, np.float32),
                                  np.zeros((2, 768))])  # fmt: skip
def test_a_bank_of_another_shape_is_refused(bank):
    with pytest.raises(ValueError, match=r"float32 \(n > 0, D\), got"):
        BankIndex(bank)


def test_numbers_that_are_not_finite_are_refused():
    bank = rows(3)
    with pytest.raises(ValueError, match="queries"):
        BankIndex(bank).search(np.full((1, 768), np.nan, np.float32), 1)
    bank[1, 5] = np.inf
    with pytest.raises(ValueError, match="bank"):
        BankIndex(bank)
