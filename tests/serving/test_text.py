from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from data_maker import make_dataset
from encoder_maker import CountingEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import TINY, seeded

from ocp_mamba.config import override
from ocp_mamba.data.build.tmd import dense
from ocp_mamba.errors import EncoderError, RequestError
from ocp_mamba.serving import text
from ocp_mamba.serving.text import TextPredictor

DATA = make_dataset(n_concepts=30)
WORDS = [str(word) for word in DATA.texts]
IDENTITY = {"name": "counting", "weight_hash": "1" * 64}


def predictor(config: Any = TINY, **given: Any) -> TextPredictor:
    return TextPredictor(seeded(config), DATA.bank, DATA.texts, **given)


PLAIN = predictor()


def next_vectors(rows: list[int]) -> np.ndarray:
    """What the model itself predicts after some bank rows, (768,)."""
    with torch.inference_mode():
        return PLAIN.model(torch.from_numpy(DATA.bank[rows])[None])[0].numpy()


def test_the_answer_names_the_nearest_concepts_with_their_cosines() -> None:
    [answer] = PLAIN.predict([[WORDS[3], WORDS[8]]], top_k=4)
    cosines = DATA.bank @ next_vectors([3, 8])
    best = np.argsort(-cosines)[:4]
    assert answer["concepts"] == [WORDS[3], WORDS[8]]
    [step] = answer["steps"]
    assert [n["concept"] for n in step["next"]] == [WORDS[row] for row in best]
    np.testing.assert_allclose([n["score"] for n in step["next"]], cosines[best], atol=1e-5)
    assert "vector" not in step
    assert json.loads(json.dumps(answer)) == answer


def test_texts_are_understood_in_any_case_and_the_answer_says_how() -> None:
    [answer] = PLAIN.predict([[f"  {WORDS[3].upper()} ", WORDS[8].replace(" ", "_")]])
    assert answer == PLAIN.predict([[WORDS[3], WORDS[8]]])[0]


def test_many_chains_are_answered_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    asked = [[WORDS[i] for i in rng.integers(0, 30, n)] for n in (1, 9, 2, 2, 5, 30, 1, 3)]
    alone = [PLAIN.predict([chain], steps=2, return_vectors=True)[0] for chain in asked]
    monkeypatch.setattr(text, "MAX_POSITIONS", 8)  # several passes, one of a chain that exceeds it
    together = PLAIN.predict(asked, steps=2, return_vectors=True)
    for one, other in zip(alone, together, strict=True):
        assert one["concepts"] == other["concepts"]
        for a, b in zip(one["steps"], other["steps"], strict=True):
            assert [n["concept"] for n in a["next"]] == [n["concept"] for n in b["next"]]
            np.testing.assert_allclose(a["vector"], b["vector"], atol=1e-5)


def test_no_pass_pads_beyond_its_positions() -> None:
    lengths = torch.tensor([1000, 1, 1, 1, 500, 500, 2000, 1])
    found = [rows.tolist() for rows in text.passes(lengths)]
    assert sorted(row for rows in found for row in rows) == list(range(8))
    for rows in found:
        longest = int(lengths[rows].max())
        assert len(rows) == 1 or longest * len(rows) <= text.MAX_POSITIONS


def test_a_rollout_is_asking_again_with_the_answer_at_the_end() -> None:
    [answer] = PLAIN.predict([[WORDS[0], WORDS[1]]], top_k=3, steps=4, return_vectors=True)
    chain = list(answer["concepts"])
    for step in answer["steps"]:
        [again] = PLAIN.predict([chain], top_k=3, return_vectors=True)
        assert [n["concept"] for n in step["next"]] == [
            n["concept"] for n in again["steps"][0]["next"]
        ]
        np.testing.assert_allclose(step["vector"], again["steps"][0]["vector"], atol=1e-5)
        chain.append(step["next"][0]["concept"])


def test_unknown_texts_are_named_with_the_nearest_known_ones() -> None:
    with pytest.raises(RequestError) as raised:
        PLAIN.predict([[WORDS[0]], [WORDS[1], "concept é 1l"]])
    message = str(raised.value)
    assert "concepts[1][1] 'concept é 1l' (nearest: 'concept é 1'" in message
    assert "30 concepts" in message
    with pytest.raises(RequestError, match="and 15 more") as raised:
        PLAIN.predict([[f"{'x' * 900}{n}" for n in range(20)]])
    assert len(str(raised.value)) < 1_000


def test_an_encoder_reads_unknown_texts_and_only_those() -> None:
    encoder = CountingEncoder()
    asked = predictor(encoder=encoder, identity=IDENTITY)
    [answer] = asked.predict([[WORDS[0], "new", "new"]], return_vectors=True)
    assert encoder.encoded == 1
    assert answer["concepts"] == [WORDS[0], "new", "new"]
    new = CountingEncoder().encode(["new"])[0]
    chain = torch.from_numpy(np.stack([DATA.bank[0], new, new]))[None]
    with torch.inference_mode():
        np.testing.assert_allclose(
            answer["steps"][0]["vector"], asked.model(chain)[0].numpy(), atol=1e-5
        )


@pytest.mark.parametrize("identity", [{"name": "other", "weight_hash": "2" * 64}, {}])
def test_another_encoder_than_the_banks_is_refused(identity: dict[str, str]) -> None:
    with pytest.raises(EncoderError, match="encoder mismatch: counting has weights 111111111111"):
        predictor(encoder=CountingEncoder(), identity=identity)


LONG = "x" * 1_001


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (None, "concepts is null; a list of chains is wanted"),
        ("shark", "concepts is the text 'shark'"),
        (7, "concepts is a int"),
        ({"a": 1}, "concepts is a dict"),
        ([], "concepts is empty"),
        (["shark"], r"concepts\[0\] is the text 'shark'; .* such as \[\[\"sand tiger\""),
        ([[WORDS[0]], None], r"concepts\[1\] is null"),
        ([[]], r"concepts\[0\] has 0 texts; 1 to 10,000 are wanted"),
        ([[WORDS[0]] * 10_001], r"concepts\[0\] has 10,001 texts"),
        ([[WORDS[0], 3.5]], r"concepts\[0\]\[1\] is a float"),
        ([[WORDS[0], None]], r"concepts\[0\]\[1\] is null"),
        ([[[WORDS[0]]]], r"concepts\[0\]\[0\] is a list"),
        ([["  "]], r"concepts\[0\]\[0\] is '  ' of 2 characters"),
        ([[LONG]], r"concepts\[0\]\[0\] is 'x+…' of 1,001 characters"),
        ([["\ud800"]], r"unknown text: concepts\[0\]\[0\] '\\ud800'"),
    ],
)
def test_what_is_no_chain_of_texts_is_refused(concepts: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        PLAIN.predict(concepts)
    assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize("name", ["top_k", "steps"])
@pytest.mark.parametrize("value", [0, -1, 10**30, 1.5, True, "5", None, float("nan")])
def test_counts_out_of_range_are_refused(name: str, value: Any) -> None:
    limit = {"top_k": "30", "steps": "100"}[name]
    with pytest.raises(RequestError, match=f"{name} is .*; a whole number from 1 to {limit} is"):
        PLAIN.predict([[WORDS[0]]], **{name: value})


def test_the_limits_themselves_are_answered() -> None:
    [answer] = PLAIN.predict([[WORDS[0]]], top_k=30, steps=100)
    assert len(answer["steps"]) == 100
    assert {n["concept"] for n in answer["steps"][0]["next"]} == set(WORDS)


def test_a_model_with_tmd_takes_codes_and_none_are_unknown_ones() -> None:
    asked = predictor(override(TINY, d_tmd=16))
    chain = [[WORDS[0], WORDS[1]]]
    vectors = torch.from_numpy(DATA.bank[[0, 1]])[None]
    for codes, row in ((None, [0, 0, 0]), ([[1, 1, 6]], [1, 1, 6])):
        [answer] = asked.predict(chain, return_vectors=True, codes=codes)
        tmd = torch.from_numpy(dense(np.array([row])))
        with torch.inference_mode():
            wanted = asked.model(vectors, tmd)[0].numpy()
        np.testing.assert_allclose(answer["steps"][0]["vector"], wanted, atol=1e-5)
    for wrong in ([], [[1, 2]], [[99, 0, 0]], [["a", 0, 0]], [[10**30, 0, 0]], 5):
        with pytest.raises(RequestError, match="codes"):
            asked.predict(chain, codes=wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="takes no TMD codes"):
        PLAIN.predict(chain, codes=[[1, 1, 6]])


def test_a_bank_needs_a_text_for_each_row() -> None:
    with pytest.raises(ValueError, match="30 bank rows and 29 texts"):
        TextPredictor(PLAIN.model, DATA.bank, DATA.texts[:-1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(concepts=JSON | st.lists(st.lists(JSON, max_size=3), max_size=3), top_k=JSON, steps=JSON)
def test_whatever_is_sent_is_answered_or_refused_by_a_short_message(
    concepts: Any, top_k: Any, steps: Any
) -> None:
    answers, message = None, ""
    try:
        answers = PLAIN.predict(concepts, top_k, min(steps, 3) if type(steps) is int else steps)
    except RequestError as error:
        message = str(error)
    if answers is None:
        assert 0 < len(message) < 1_000
    else:
        assert json.loads(json.dumps(answers, allow_nan=False)) == answers
        assert len(answers) == len(concepts)
