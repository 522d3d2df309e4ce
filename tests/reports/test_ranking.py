"""Ranking of real tracked runs, evaluated by the commands as a person types them."""

import re
import shutil

import mlflow
import numpy as np
import pytest
from command import run
from data_maker import make_dataset

from ocp_mamba.baselines.simple import cheap_baselines
from ocp_mamba.errors import CompareError
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.result import paired_difference
from ocp_mamba.jobs.compare import load_candidates
from ocp_mamba.reports.evaluation_page import write_figures
from ocp_mamba.reports.ranking import compare
from ocp_mamba.tracking import session
from ocp_mamba.tracking.store import use_store

SPREAD = make_dataset(n_chains=150, n_concepts=60, seed=3)
OTHER = make_dataset(n_chains=150, n_concepts=60, seed=8)

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def evaluated():
    return {n: evaluate(p, SPREAD, "val", name=n) for n, p in cheap_baselines(SPREAD).items()}


def track_evaluation(name, evaluation, dataset, folder):
    """Track an evaluation as `ocp-mamba evaluate` does; returns the run's id."""
    with session.track(
        dataset, "d.npz", output_dir=folder, run_name=name, system_metrics=False
    ) as opened:
        for path in write_figures(evaluation, folder / opened.run_id):
            opened.log_artifact(path, "reports")
    return opened.run_id


@pytest.fixture(scope="module")
def tracked_store(evaluated, tmp_path_factory, empty_database):
    """A store with four evaluations: two comparable, one of another split, one of other data."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.chdir(folder)
        test_split = evaluate(cheap_baselines(SPREAD)["ridge"], SPREAD, "test", name="ridge")
        other_data = evaluate(cheap_baselines(OTHER)["ridge"], OTHER, "val", name="ridge")
        ids = {
            "a-ridge": track_evaluation("a-ridge", evaluated["ridge"], SPREAD, folder),
            "a-mean": track_evaluation("a-mean", evaluated["context_mean"], SPREAD, folder),
            "a-twin": track_evaluation("a-twin", evaluated["ridge"], SPREAD, folder),
            "on-test": track_evaluation("on-test", test_split, SPREAD, folder),
            "on-other": track_evaluation("on-other", other_data, OTHER, folder),
            "double": track_evaluation("double", evaluated["ridge"], SPREAD, folder),
        }
        track_evaluation("double", evaluated["ridge"], SPREAD, folder)
        with session.track(
            SPREAD, "d.npz", output_dir=folder, run_name="empty", system_metrics=False
        ):
            pass
    mlflow.set_tracking_uri(before)
    return uri, ids


@pytest.fixture
def ids(tracked_store, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked_store[0])
    use_store()
    return tracked_store[1]


def test_runs_are_ranked_by_name_or_id_with_paired_differences(ids, evaluated, tmp_path):
    said = run("compare", "a-ridge", ids["a-mean"], "--output", tmp_path / "out")
    means = {n: evaluated[n].figures["next_vec_cosine"].value for n in ("ridge", "context_mean")}
    best, other = sorted(means, key=means.get, reverse=True)
    lines = said.splitlines()
    assert best in lines[2]
    assert str(evaluated[best].figures["next_vec_cosine"]) in lines[2]
    assert lines[2].endswith("best")
    assert other in lines[3]
    gap = paired_difference(evaluated[other], evaluated[best], "next_vec_cosine")
    assert f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" in lines[3]
    assert ("not significant" in lines[3]) == (gap.high >= 0)
    assert f"{evaluated[best].n_examples:,} sequences of the val split" in said
    for name in ("compare.md", "compare.html", "compare.png"):
        assert (tmp_path / "out" / name).stat().st_size > 300
    assert "| run" in (tmp_path / "out/compare.md").read_text()
    page = (tmp_path / "out/compare.html").read_text()
    assert ids["a-mean"] in page
    assert not re.search(r"https?://|<script", page)


def test_equals_are_not_significant(ids):
    said = run("compare", "a-ridge", "a-twin", "--metric", "mrr")
    assert "+0.0000 [+0.0000, +0.0000]  not significant" in said


def test_a_stratum_is_compared_on_its_own_sequences(ids, evaluated):
    comparison = compare(load_candidates(["a-ridge", "a-mean"]), "next_vec_cosine", "unseen")
    assert comparison.label == "unseen/next_vec_cosine"
    for row in comparison.rows:
        wanted = evaluated[row.candidate.evaluation["predictor"]].figures[comparison.label]
        assert row.figure.n == wanted.n
        assert row.figure.value == pytest.approx(wanted.value, abs=1e-6)


def test_other_splits_and_other_data_are_not_ranked(ids):
    said = run("compare", "a-ridge", "on-test", "on-other", code=2)
    assert "on-test differs from a-ridge in split: test, not val" in said
    wanted = f"in evaluation data: {OTHER.fingerprint[:16]}, not {SPREAD.fingerprint[:16]}"
    assert f"on-other differs from a-ridge {wanted}" in said
    assert "on-test differs from a-ridge in evaluation data" not in said
    assert "best" not in said


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pool_size", 17425, "in bank (pool size): 17425, not 60"),
        ("metrics_version", "0", "in metric version: 0, not"),
    ],
)
def test_another_bank_or_metric_version_is_not_ranked(ids, key, value, words):
    first, second = load_candidates(["a-ridge", "a-mean"])
    second.evaluation[key] = value
    with pytest.raises(CompareError, match=re.escape(f"a-mean differs from a-ridge {words}")):
        compare([first, second], "next_vec_cosine")


def test_two_evaluations_of_an_older_metric_version_are_not_ranked(ids):
    both = load_candidates(["a-ridge", "a-mean"])
    for old in both:
        old.evaluation["metrics_version"] = "1"
        del old.per_example["families"]
    with pytest.raises(CompareError, match=r"evaluated by metric version 1; .* again"):
        compare(both, "next_vec_cosine")


@pytest.mark.parametrize(
    ("key", "metric", "words"),
    [
        ("echo_encoder", "echo_loop_similarity", "in echo encoder: mpnet, not bank"),
        ("index", "faiss_retrieval_p1", "in search index: mpnet, not exact"),
    ],
)
def test_what_a_metric_depends_on_must_be_the_same(ids, key, metric, words):
    first, second = load_candidates(["a-ridge", "a-mean"])
    second.evaluation[key] = "mpnet"
    assert compare([first, second], "next_vec_cosine")
    with pytest.raises(CompareError, match=words):
        compare([first, second], metric)


def test_sequences_that_differ_in_silence_are_noticed(ids):
    first, second = load_candidates(["a-ridge", "a-mean"])
    second.per_example["chains"] = np.roll(second.per_example["chains"], 1)
    with pytest.raises(CompareError, match="yet their sequences differ"):
        compare([first, second], "next_vec_cosine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a-ridge"], "a comparison needs two runs or more"),
        (["a-ridge", "a-ridge"], "is named 2 times"),
        (["a-ridge", "absent"], "no run is named 'absent'"),
        (["a-ridge", "f" * 32], "f" * 32),
        (["a-ridge", "double"], "2 runs are named 'double'; give an id"),
        (["a-ridge", "empty"], "has no evaluation to compare, reports/evaluation.json"),
    ],
)
def test_what_cannot_be_read_is_named(ids, words, message):
    said = run("compare", *words, code=2)
    assert message in said
    assert "Traceback" not in said


def test_runs_of_one_name_are_told_apart(ids):
    candidates = load_candidates([ids["double"], "a-mean"])
    assert [c.name for c in candidates] == ["double", "a-mean"]
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="attributes.run_name = 'double'",
        output_format="list",
    )
    both = load_candidates([r.info.run_id for r in found])
    assert {c.name for c in both} == {f"double ({r.info.run_id[:8]})" for r in found}


def test_an_empty_stratum_is_an_error(ids):
    first, second = load_candidates(["a-ridge", "a-mean"])
    first.per_example["stratum/seen"][:] = False
    with pytest.raises(CompareError, match="the stratum 'seen' has no sequences"):
        compare([first, second], "mrr", "seen")
    with pytest.raises(CompareError, match="was not evaluated by bogus"):
        compare([first, second], "bogus")


def test_an_unreachable_store_is_named(store):
    said = run("compare", "a", "b", "--store", "http://127.0.0.1:9", code=2)
    assert "tracking store http://127.0.0.1:9" in said


def test_help_has_an_example():
    assert "ocp-mamba compare FIRST SECOND THIRD --metric p1" in run("compare", "--help")
