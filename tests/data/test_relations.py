"""Relations and confidences of the steps: from chain files into the dataset file and back."""

import json

import numpy as np
import pytest
from data_maker import fields_of, make_dataset
from encoder_maker import CountingEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.data.batches import batches
from ocp_mamba.data.build.builder import build_dataset
from ocp_mamba.data.build.chains import Chain, clean_chains, read_chains
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError


def line(**keys):
    return json.dumps({"concepts": ["a", "b", "c"], "source": "s"} | keys)


@pytest.mark.parametrize("confidence", [True, False])
def test_saved_and_loaded_they_are_the_same(tmp_path, confidence):
    data = make_dataset(relations=True)
    if not confidence:
        data = Dataset(**fields_of(data) | {"chain_confidence": None})
    data.save(tmp_path / "d.npz")
    loaded = Dataset.load(tmp_path / "d.npz")
    assert loaded.relations == ("is a", "part of")
    np.testing.assert_array_equal(loaded.chain_relation, data.chain_relation)
    assert loaded.fingerprint == data.fingerprint
    places = np.arange(len(data.chain_values))
    np.testing.assert_array_equal(loaded.steps(places), data.steps(places))


def test_without_them_nothing_changes_and_each_part_counts():
    plain, known = make_dataset(), make_dataset(relations=True)
    assert plain.relations == ()
    assert plain.steps(np.arange(3)) is None
    prints = {plain.fingerprint, known.fingerprint}
    for key, value in {
        "chain_confidence": None,
        "chain_relation": np.where(known.chain_relation == 1, 2, known.chain_relation).astype(
            np.uint16
        ),
        "meta": known.meta | {"relations": ["is a", "has"]},
    }.items():
        prints.add(Dataset(**fields_of(known) | {key: value}).fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chain_relation": None, "chain_confidence": None}, "absent, but there is relations"),
        ({"chain_relation": np.zeros(3, np.uint16)}, r"key 'chain_relation': uint16 \(3,\) found"),
        ({"relation": ("start", 1)}, "key 'chain_relation': 0 at a chain's start wanted"),
        ({"relation": ("step", 9)}, "key 'chain_relation': 9 found at index 1, 0 to 2 wanted"),
        ({"confidence": ("step", 1.5)}, "key 'chain_confidence': 0 to 1 wanted"),
        ({"confidence": ("step", np.nan)}, "key 'chain_confidence': 0 to 1 wanted"),
        ({"confidence": ("start", 0.5)}, "0 where the relation is unknown wanted"),
        ({"names": None}, "key 'meta': relations None found"),
        ({"names": ["a", "a"]}, "list of one or more different names"),
    ],
)
def test_what_is_wrong_is_named(changed, message):
    fields = fields_of(make_dataset(relations=True))
    for short in ("relation", "confidence"):
        if short in changed:
            where, value = changed.pop(short)
            array = fields[f"chain_{short}"].copy()
            array[0 if where == "start" else 1] = value
            changed[f"chain_{short}"] = array
    if "names" in changed:
        names = changed.pop("names")
        changed["meta"] = {k: v for k, v in fields["meta"].items() if k != "relations"}
        if names:
            changed["meta"]["relations"] = names
    with pytest.raises(DatasetError, match=message):
        Dataset(**fields | changed)


@given(seed=st.integers(0, 50), size=st.integers(1, 9), shuffle=st.none() | st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_batches_bear_the_relation_by_which_each_input_follows(seed, size, shuffle):
    data = make_dataset(20, 15, seed, relations=True)
    for batch in batches(data, "train", size, shuffle_seed=shuffle):
        assert batch.relations.shape == (*batch.inputs.shape, 2)
        for row, i in enumerate(batch.chain_ids.tolist()):
            start, n = data.chain_offsets[i], int(batch.lengths[row])
            relation, confidence = batch.relations[row].T.numpy()
            np.testing.assert_array_equal(relation[:n], data.chain_relation[start : start + n])
            np.testing.assert_array_equal(confidence[:n], data.chain_confidence[start : start + n])
            assert not batch.relations[row, n:].any()


def test_chain_files_carry_them(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(
        "\n".join([
            line(relations=["is a", None], confidences=[0.5, 0]),
            line(concepts=["d", "e", "f"], relations=["part of ", "is a"]),
            line(concepts=["g", "h", "i"]),
        ])
    )  # fmt: skip
    first, second, third = read_chains([path])
    assert (first.relations, first.confidences) == (("is a", None), (0.5, 0.0))
    assert (second.relations, second.confidences) == (("part of", "is a"), ())
    assert (third.relations, third.confidences) == ((), ())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"relations": ["is a"]}, "key 'relations': .*a list of 2 names or null"),
        ({"relations": "is a"}, "key 'relations'"),
        ({"relations": ["is a", " "]}, "key 'relations'"),
        ({"relations": ["is a", 3]}, "key 'relations'"),
        ({"confidences": [1, 1]}, "without 'relations'"),
        ({"relations": ["a", "b"], "confidences": [1]}, "a list of 2 numbers from 0 to 1"),
        ({"relations": ["a", "b"], "confidences": [1, 2]}, "a list of 2 numbers from 0 to 1"),
        ({"relations": ["a", "b"], "confidences": [1, True]}, "a list of 2 numbers from 0 to 1"),
    ],
)
def test_bad_lines_are_named(tmp_path, keys, message):
    path = tmp_path / "c.jsonl"
    path.write_text(line(**keys))
    with pytest.raises(DatasetError, match=rf"c\.jsonl, line 1: .*{message}"):
        read_chains([path])


def test_a_chain_that_is_cut_loses_the_steps_that_go_with_it():
    chain = Chain(
        tuple(map(str, range(18))), "s", relations=("r",) * 17, confidences=(0.5,) * 16 + (0.9,)
    )
    (kept,), _ = clean_chains([chain])
    assert len(kept.concepts) == 15
    assert kept.relations == ("r",) * 14
    assert kept.confidences == (0.5,) * 14


def test_the_builder_numbers_them_by_name_and_reports_them(tmp_path):
    chains = [
        Chain((f"leaf {i}", f"kind {i % 7}", "thing"), "s", relations=("part of", "is a"))
        for i in range(30)
    ]
    chains[3] = Chain(("x", "y", "z"), "s")
    chains[4] = Chain(("u", "v", "w"), "s", relations=("is a", None), confidences=(0.25, 0.75))
    build = {"seed": 0, "licence": "own", "cache_dir": tmp_path, "progress": False}
    data, report = build_dataset(chains, CountingEncoder(), **build)
    assert data.relations == ("is a", "part of")
    known = data.chain_relation.reshape(-1, 3).tolist()
    sure = data.chain_confidence.reshape(-1, 3).tolist()
    assert known[:5] == [[0, 2, 1]] * 3 + [[0, 0, 0], [0, 1, 0]]
    assert sure[:5] == [[0, 1, 1]] * 3 + [[0, 0, 0], [0, 0.25, 0]]
    assert report.relations == {"is a": 29, "part of": 28}
    assert report.unknown_steps == 3
    assert "steps by part of" in report.to_markdown()
    plain, without = build_dataset(
        [Chain(c.concepts, "s") for c in chains], CountingEncoder(), **build
    )
    assert plain.chain_relation is None
    assert "relation" not in without.to_markdown()
    sure_of_all = [Chain(c.concepts, "s", relations=c.relations) for c in chains]
    data, _ = build_dataset(sure_of_all, CountingEncoder(), **build)
    assert data.chain_confidence is None
