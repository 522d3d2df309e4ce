"""The table of variants, by made-up evaluations: differences, scaling coefficient, failures."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_maker import make_dataset
from evaluated import evaluate_baselines
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.reports.baseline_table import Row
from ocp_mamba.reports.plots import plot_variants
from ocp_mamba.reports.variant_table import (
    FAILED,
    NOT_RUN,
    Comparison,
    Scaling,
    Variant,
    drawn,
    numbers,
    scaling_text,
    to_dict,
    to_markdown,
)
from ocp_mamba.stats import mean_over_seeds, ratio_over_seeds

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def evaluated():
    return evaluate_baselines(make_dataset(n_chains=150, n_concepts=60, seed=3))["ridge"]


def shifted(evaluated, by):
    cosines = evaluated.per_example["next_vec_cosine"] + by
    return replace(evaluated, per_example=evaluated.per_example | {"next_vec_cosine": cosines})


def variant(name, evaluated, code=""):
    return Variant(name, code, Row(name, evaluated, 1234, 2.5), steps=90)


def scaling(above, below, groups=None):
    above, below = np.atleast_2d(above).astype(float), np.atleast_2d(below).astype(float)
    families = np.arange(above.shape[1]) if groups is None else groups
    sizes = {"concepts": (200, 101)}
    return Scaling({"cosine": (above, below), "P@1": (above, below)}, families, sizes, 1.0)


def test_by_hand_a_ratio_of_means_and_where_there_is_none():
    found = ratio_over_seeds(np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 2.0, 4.0]]), np.arange(3))
    assert found.value == pytest.approx(6 / 8)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(1.0)
    assert ratio_over_seeds(np.ones((1, 3)), np.zeros((1, 3)), np.arange(3)).value is None
    assert ratio_over_seeds(np.ones((1, 0)), np.ones((1, 0)), np.arange(0)).value is None
    rarely = ratio_over_seeds(np.ones((1, 3)), np.array([[0.0, 0.0, 3.0]]), np.arange(3))
    assert (rarely.value, rarely.low, rarely.high) == (1.0, None, None), "some resamples have 0"
    alone = ratio_over_seeds(np.ones((1, 3)), 2 * np.ones((1, 3)), np.zeros(3, int))
    assert (alone.value, alone.low) == (0.5, None), "one family says nothing of another"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 500), factor=st.floats(0.2, 3), seeds=st.integers(1, 3))
def test_what_is_hard_for_both_cancels_in_the_ratio(seed, factor, seeds):
    rng = np.random.default_rng(seed)
    below = rng.random((seeds, 60)) + 0.1
    below[1:] = below[:1]
    groups = rng.integers(0, 20, 60)
    found = ratio_over_seeds(factor * below, below, groups)
    assert found.low == pytest.approx(factor)
    assert found.value == pytest.approx(factor)
    assert found.high == pytest.approx(factor)
    assert mean_over_seeds(below, groups).low < mean_over_seeds(below, groups).high


def test_seeds_that_disagree_widen_the_ratios_interval():
    rng = np.random.default_rng(0)
    below = 1 + rng.random((2, 100))
    same = np.stack([below[0], below[0]])
    apart = same * np.array([[0.9], [1.1]])
    alike = ratio_over_seeds(same, below, np.arange(100))
    found = ratio_over_seeds(apart, below, np.arange(100))
    assert found.high - found.low > 2 * (alike.high - alike.low)


@pytest.mark.parametrize(
    ("above", "gate"), [(0.84, "fail"), (0.85, "pass"), (1.3, "pass"), (0.0, "fail")]
)
def test_a_coefficient_passes_from_085_on(above, gate):
    found = scaling([above] * 4, [1.0] * 4)
    assert found.gate("cosine") == gate
    assert f"{above:.3f} [{above:.3f}, {above:.3f}]: {gate}" in scaling_text(found)


def test_a_coefficient_that_cannot_be_is_not_run_and_says_so():
    found = scaling([1, 1], [0, 0])
    assert found.gate("P@1") == "not-run"
    assert "no ratio, the half's is not above 0: not-run" in scaling_text(found)
    none = Scaling({}, np.array([]), {}, state=NOT_RUN, reason="no halves")
    assert none.gate("cosine") == "not-run"
    assert scaling_text(none) == "Scaling coefficient: not run: no halves."


@pytest.fixture
def comparison(evaluated):
    return Comparison(
        base=variant("base", [evaluated]),
        variants=[
            variant("1D", [shifted(evaluated, 0.1)], "deeper"),
            Variant("1B", "TMD", state=NOT_RUN, reason="the dataset has no TMD codes"),
            Variant("1E", "", state=FAILED, reason="TrainingError: nan"),
        ],
        scaling=scaling([0.9] * 4, [1.0] * 4),
        seeds=(0,),
    )


def test_the_table_has_a_row_for_everything_that_was_asked_for(comparison, evaluated):
    text = to_markdown(comparison)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert {"base", "1D deeper", "1B TMD", "1E"} <= set(rows)
    assert "not run: the dataset has no TMD codes" in rows["1B TMD"]
    assert "failed: TrainingError: nan" in rows["1E"]
    assert "1,234" in rows["base"]
    assert "**+0.1000 [+0.1000, +0.1000]**" in text, "paired: what is hard for both cancels"
    assert "+0.0000 [+0.0000, +0.0000] |" in text, "P@1 is the same, and not bold"
    assert f"pool {evaluated.pool_size:,}" in text
    assert "one seed of training, 0" in text
    assert "Scaling coefficient" in text
    assert comparison.failed == ["1E"]


def test_several_seeds_are_averaged_and_widen_the_interval(evaluated):
    one = Comparison(
        variant("base", [evaluated]), [variant("1D", [shifted(evaluated, 0.1)])], None, (0,)
    )
    two = Comparison(
        variant("base", [evaluated, evaluated]),
        [variant("1D", [shifted(evaluated, 0.0), shifted(evaluated, 0.2)])],
        None,
        (0, 1),
    )
    assert two.difference(two.variants[0], "cosine").value == pytest.approx(0.1)
    low = one.difference(one.variants[0], "cosine").low
    assert two.difference(two.variants[0], "cosine").low < low
    assert "seeds 0 and 1" in to_markdown(two)


def test_numbers_and_json_hold_what_the_table_says(comparison):
    flat = numbers(comparison)
    assert flat["1D/minus_base_next_vec_cosine"] == pytest.approx(0.1)
    assert flat["scaling/next_vec_cosine"] == pytest.approx(0.9)
    assert not any(name.startswith(("1B", "1E")) for name in flat)
    written = json.loads(json.dumps(to_dict(comparison)))
    states = {v["name"]: v["state"] for v in written["variants"]}
    assert states == {"base": "ran", "1D": "ran", "1B": "not run", "1E": "failed"}
    assert written["scaling"]["coefficients"]["cosine"]["gate"] == "pass"
    assert json.loads(json.dumps(to_dict(replace(comparison, scaling=None))))["scaling"] is None


def test_evaluations_of_other_data_are_refused(comparison, evaluated):
    other = replace(evaluated, dataset_fingerprint="another")
    with pytest.raises(ValueError, match="differ in dataset_fingerprint"):
        replace(comparison, variants=[variant("1D", [other])])


def test_the_plot_shows_each_row_that_ran(comparison, tmp_path):
    path = plot_variants(drawn(comparison), tmp_path / "variants.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(drawn(comparison)) == ["base", "1D"]


def test_the_table_is_pasted_between_its_markers(comparison):
    paste = runpy.run_path(str(ROOT / "scripts" / "paste_table.py"))
    begin, end = paste["markers"]("variants")
    readme = f"a\n{begin}\nold\n{end}\nz\n"
    table = to_markdown(comparison)
    new = paste["pasted"]("variants", readme, table + "\n")
    assert new == f"a\n{begin}\n{table}\n{end}\nz\n"
    with pytest.raises(SystemExit, match="needs"):
        paste["pasted"]("variants", "a readme", table)
    with pytest.raises(SystemExit, match=r"not the variants\.md"):
        paste["pasted"]("variants", readme, "| predictor |")
    with pytest.raises(SystemExit, match=r"docs/x\.md needs"):
        paste["pasted"]("variants", "a page", table, "docs/x.md")
    for page in ("docs/results.md", "docs/sweeps.md"):
        assert (ROOT / page).read_text().count(begin) == 1
