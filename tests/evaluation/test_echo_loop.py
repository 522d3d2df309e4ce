import numpy as np
import pytest
from data_maker import make_dataset
from encoder_maker import CountingEncoder

from ocp_mamba.baselines.simple import ContextMean
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.echo_loop import EncoderMismatchError, check_parity, encode_again
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.result import paired_difference


@pytest.fixture(scope="module")
def data():
    texts = np.array([f"concept {i}" for i in range(80)])
    bank = CountingEncoder().encode(texts)
    return make_dataset(n_chains=100, n_concepts=80, texts=texts, bank=bank)


def test_the_banks_own_encoder_is_at_parity_also_after_float16(data, tmp_path):
    parity = check_parity(CountingEncoder(), data)
    assert parity.n == 64
    assert parity.lowest == pytest.approx(1.0, abs=1e-6)
    data.save(tmp_path / "stored.npz")
    stored = check_parity(CountingEncoder(), Dataset.load(tmp_path / "stored.npz"))
    assert 0.99999 < stored.lowest <= stored.mean


def test_a_small_bank_is_checked_whole():
    texts = np.array([f"concept {i}" for i in range(30)])
    small = make_dataset(texts=texts, bank=CountingEncoder().encode(texts))
    encoder = CountingEncoder()
    assert check_parity(encoder, small).n == encoder.encoded == 30


def test_an_encoder_with_other_weights_is_refused_with_the_figures(data):
    with pytest.raises(EncoderMismatchError) as refused:
        check_parity(CountingEncoder(weight_hash="2" * 64), data)
    said = str(refused.value)
    assert said.startswith("encoder mismatch: 64 bank texts encoded again by counting")
    for word in ("mean ", "lowest -", "'concept ", "each must reach 0.999", "it is of random"):
        assert word in said


def test_one_text_that_has_another_vector_is_enough(data):
    class Nearly(CountingEncoder):
        def encode(self, texts):
            rows = super().encode(texts)
            rows[3] = -rows[3]
            return rows

    with pytest.raises(EncoderMismatchError, match=r"mean 0\.96.*lowest -1\.0"):
        check_parity(Nearly(), data)


def test_each_text_is_encoded_once(data):
    encoder = CountingEncoder()
    ids = np.array([5, 2, 5, 5, 2])
    np.testing.assert_allclose(encode_again(encoder, data, ids), data.bank[ids], atol=1e-6)
    assert encoder.encoded == 2


def test_the_live_echo_is_of_the_text_found_and_says_whose_it_is(data):
    bank = evaluate(ContextMean(), data, "val", name="mean")
    live = evaluate(ContextMean(), data, "val", name="mean", encoder=CountingEncoder())
    assert (bank.echo_encoder, live.echo_encoder) == ("bank", "counting")
    assert bank.parity is None
    assert live.parity.encoder == "counting"
    assert live.to_dict()["parity"]["n"] == 64
    for metric in ("echo_loop_similarity", "echo_to_prediction"):
        assert live.figures[metric].value == pytest.approx(bank.figures[metric].value, abs=1e-5)
    assert live.tags()["echo_encoder"] == "counting"
    assert live.tags()["metric.vec2text"] == "not-run"
    with pytest.raises(ValueError, match="differ in echo_encoder: bank and counting"):
        paired_difference(bank, live, "echo_loop_similarity")
    assert paired_difference(bank, live, "next_vec_cosine").value == 0.0


def test_the_echo_is_really_encoded_and_not_looked_up(data):
    class Rounding(CountingEncoder):
        """At parity with the bank, but not the same to the last bit."""

        def encode(self, texts):
            rows = super().encode(texts)
            rows[:, 0] += 0.02
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    bank = evaluate(ContextMean(), data, "val", name="mean")
    live = evaluate(ContextMean(), data, "val", name="mean", encoder=Rounding())
    gap = live.per_example["echo_loop_similarity"] - bank.per_example["echo_loop_similarity"]
    assert 1e-5 < np.abs(gap).max() < 0.05


def test_evaluating_with_another_encoder_stops(data):
    with pytest.raises(EncoderMismatchError, match="encoder mismatch"):
        evaluate(ContextMean(), data, "val", name="mean", encoder=CountingEncoder("3" * 64))
