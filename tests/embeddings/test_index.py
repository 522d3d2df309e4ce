import numpy as np
import pytest

from ocp_mamba.embeddings import index as faiss_index
from ocp_mamba.embeddings.index import BankIndex


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


def test_an_exact_index_keeps_no_copy_of_the_bank():
    bank = rows(300)
    index = BankIndex(bank)
    bank[7] = rows(1, seed=9)[0]
    assert index.search(bank[7:8], 1)[1].tolist() == [[7]]


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


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_says_what_it_misses(kind, monkeypatch):
    centres = rows(40, seed=2)
    near = centres[np.arange(2000) % 40] + 0.02 * np.random.default_rng(3).standard_normal(
        (2000, 768)
    )
    bank = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    queries = bank[::50]
    index = BankIndex(bank, kind)
    assert index.kind == kind
    assert index.size == 2000
    recall = index.recall_at_1(queries)
    _, found = index.search(queries, 1)
    assert recall == pytest.approx((found[:, 0] == np.arange(0, 2000, 50)).mean())
    assert recall > 0.9
    assert BankIndex(bank).recall_at_1(queries) == 1.0


def test_recall_is_of_what_is_found_and_not_assumed(monkeypatch):
    monkeypatch.setattr(faiss_index, "CELLS_PROBED", 1)
    monkeypatch.setattr(faiss_index, "RECALL", 0.0)
    bank, queries = rows(2000), rows(200, seed=1)
    index = BankIndex(bank, "ivf")
    _, found = index.search(queries, 1)
    _, exact = BankIndex(bank).search(queries, 1)
    assert index.recall_at_1(queries) == (found == exact).mean() < 0.9


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_fills_every_place(kind, monkeypatch):
    monkeypatch.setattr(faiss_index, "CELLS_PROBED", 1)
    monkeypatch.setattr(faiss_index, "RECALL", 0.0)
    bank, queries = rows(130), rows(20, seed=1)
    scores, ids = BankIndex(bank, kind).search(queries, 120)
    assert ids.min() >= 0
    assert all(len(set(row)) == 120 for row in ids)
    products = np.take_along_axis(queries @ bank.T, ids, 1)
    np.testing.assert_allclose(scores, products, atol=1e-5)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="index 'lsh' is unknown; choose one of auto, exact"):
        BankIndex(rows(3), "lsh")


def near(bank, n, cosine, seed=5):
    """Queries at a cosine from rows of the bank, with those rows' numbers."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(len(bank), n, replace=False)
    noise = rng.standard_normal((n, 768))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return (cosine * bank[ids] + (1 - cosine**2) ** 0.5 * noise).astype(np.float32), ids


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_looks_as_far_as_a_recall_of_99_needs(kind, monkeypatch):
    monkeypatch.setattr(faiss_index, "CELLS_PROBED", 1)
    monkeypatch.setattr(faiss_index, "HNSW_SEARCH", 1)
    monkeypatch.setattr(faiss_index, "QUERY_COSINE", 0.5)
    bank = rows(3000)  # no clusters: the hardest there is
    queries, _ = near(bank, 500, cosine=0.5)
    assert BankIndex(bank, kind).recall_at_1(queries) >= 0.97
    monkeypatch.setattr(faiss_index, "RECALL", 0.0)
    assert BankIndex(bank, kind).recall_at_1(queries) < 0.9


def test_auto_is_exact_up_to_a_number_of_rows(monkeypatch):
    assert faiss_index.EXACT_ROWS == 1_000_000
    monkeypatch.setattr(faiss_index, "EXACT_ROWS", 300)
    assert BankIndex(rows(300), "auto").kind == "exact"
    assert BankIndex(rows(301), "auto").kind == "ivf"


@pytest.mark.parametrize("n", [1, 3, 4, 64, 200])
def test_a_batch_of_any_size_is_searched_exactly(n):
    bank, queries = rows(300), rows(n, seed=1)
    scores, ids = BankIndex(bank).search(queries, 3)
    products = queries @ bank.T
    np.testing.assert_array_equal(ids, np.argsort(-products, axis=1)[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :3], atol=1e-5)
