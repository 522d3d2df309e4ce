import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from data_maker import make_dataset
from evaluated import HISTORY, evaluate_baselines

from ocp_mamba.baselines.simple import Persistence
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.reports import findings
from ocp_mamba.reports.evaluation_page import Report, html_report, write_evaluation
from ocp_mamba.reports.note import run_note
from ocp_mamba.stats import bootstrap_mean

DATA = make_dataset(n_chains=150, n_concepts=60, seed=3)


class Oracle:
    """Gives the true next vector of every context, which it knows by its concepts."""

    def __init__(self, dataset, split):
        self.bank = torch.from_numpy(dataset.bank)
        self.next = {}
        for i in dataset.chains_in(split):
            chain = dataset.chain(int(i)).tolist()
            for k in range(1, len(chain)):
                self.next[tuple(chain[:k])] = chain[k]

    def predict_all(self, seq_vectors, tmd=None):
        ids = (seq_vectors @ self.bank.T).argmax(-1)
        out = seq_vectors.clone()
        for row, line in enumerate(ids.tolist()):
            for k in range(1, len(line) + 1):
                if tuple(line[:k]) in self.next:
                    out[row, k - 1] = self.bank[self.next[tuple(line[:k])]]
        return out


class Strict(HTMLParser):
    """Fails on a tag that is closed out of turn; gathers the text and the attributes."""

    VOID = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def baselines() -> dict[str, Evaluation]:
    return evaluate_baselines(DATA)


@pytest.fixture(scope="module")
def oracle() -> Evaluation:
    return evaluate(Oracle(DATA, "val"), DATA, "val", name="oracle")


@pytest.fixture(scope="module")
def report(oracle, baselines) -> Report:
    return Report(
        "Evaluation of <oracle>", oracle, DATA, baselines,
        gates={"no_leak": "pass", "beats_baselines_p1": "fail", "echo": "not-run"},
        facts={"run": "abc"}, history=HISTORY, warnings=["rows & columns"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(report) -> str:
    return html_report(report)


def test_the_page_is_well_formed_and_fetches_nothing(written) -> None:
    parsed = Strict(written)
    links = [value for tag, name, value in parsed.attributes if name in ("src", "href")]
    assert len(links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "<script" not in written
    assert not re.search(r"https?://|@import|url\(", written)
    assert "Evaluation of &lt;oracle&gt;" in written
    assert "rows &amp; columns" in written


def test_the_page_says_what_was_evaluated_on_what(written, oracle) -> None:
    text = " ".join(Strict(written).text)
    for said in (DATA.fingerprint, "random", "val", f"{oracle.n_examples:,} of", "60 concepts",
                 f"{1 / 60:.5f}", "abc"):  # fmt: skip
        assert said in text, said


def test_every_baseline_stands_with_its_interval(written, report) -> None:
    for evaluation in report.all_evaluations.values():
        figure = evaluation.figures["next_vec_cosine"]
        assert f"[{figure.low:.3f}, {figure.high:.3f}]" in written
    for gate, kind in (("pass", "good"), ("fail", "bad"), ("not-run", "open")):
        assert f'<span class="tag {kind}">{gate}</span>' in written
    assert "Failed gates: beats_baselines_p1." in written


def test_examples_show_context_truth_and_what_was_found(written, report) -> None:
    examples = DATA.examples("val")
    worst = int(np.argmin(report.evaluation.per_example["next_vec_cosine"]))
    context = DATA.chain(int(examples.chain[worst]))[: examples.position[worst]]
    assert " &rarr; ".join(DATA.texts[context]) in written
    assert '<li class="hit">' in written
    assert html_report(report) == written
    assert html_report(replace(report, seed=1)) != written


def test_an_oracle_is_praised(oracle, baselines) -> None:
    said = {s.question: s for s in findings.statements(oracle, baselines, DATA)}
    assert said["Better than the baselines on cosine?"].answer == "yes, all"
    assert said["Better on unseen transitions, P@1?"].tone == findings.GOOD
    assert said["Does it copy its input?"].answer == "no"
    assert said["Has it collapsed?"].answer == "no"


def test_a_copy_and_a_constant_are_called_so(oracle, baselines) -> None:
    others = {"oracle": oracle, "ridge": baselines["ridge"]}
    copy = {s.question: s for s in findings.statements(baselines["persistence"], others, DATA)}
    assert copy["Does it copy its input?"].answer == "yes"
    assert copy["Better than the baselines on cosine?"].tone == findings.BAD
    assert "loses to" in copy["Better than the baselines on cosine?"].sentence
    constant = {s.question: s for s in findings.statements(baselines["global_mean"], {}, DATA)}
    assert constant["Has it collapsed?"].answer == "yes"
    assert "Better than the baselines on cosine?" not in constant


def test_few_unseen_transitions_say_nothing(oracle, baselines) -> None:
    """Five are too few, be they all right."""
    few = np.zeros(oracle.n_examples, bool)
    few[:5] = True
    strata = {"seen": ~few, "unseen": few, "unseen_target": few & False}
    figures = {
        f"{name}/{metric}": bootstrap_mean(oracle.per_example[metric][mask], oracle.families[mask])
        for name, mask in strata.items()
        for metric in ("next_vec_cosine", "faiss_retrieval_p1")
    }
    small = replace(oracle, strata=strata, figures=oracle.figures | figures)
    said = {s.question: s for s in findings.statements(small, baselines, DATA)}
    verdict = said["Does it carry over to unseen transitions?"]
    assert (verdict.answer, verdict.tone) == ("unknown, n = 5", findings.OPEN)
    assert said["Better on unseen transitions, P@1?"].tone == findings.OPEN


def test_nothing_is_good_below_a_baseline(oracle, baselines) -> None:
    """Ridge finds more than chance, and an oracle finds all."""
    others = {"oracle": oracle}
    said = findings.statements(baselines["ridge"], others, DATA)
    tones = {s.question: s.tone for s in said}
    for question in ("Does it find the next concept?", "Does it carry over to unseen transitions?"):
        assert tones[question] != findings.GOOD, question
    p1 = said[0]
    assert "the baseline oracle: 100.0%" in p1.sentence


def test_few_different_concepts_are_no_good_sign(oracle, baselines) -> None:
    """Its vectors vary enough, and stand near 43 of 503 concepts."""
    scalars = oracle.scalars | {"predicted_concepts": 43.0, "target_concepts": 503.0}
    few = replace(oracle, scalars=scalars)
    verdict = gates.collapse_gate(few)
    assert verdict == gates.FAIL
    assert "concepts 43 of 503" in verdict.value
    said = {s.question: s for s in findings.statements(few, baselines, DATA)}
    assert said["Has it collapsed?"].tone == findings.BAD
    scalars = oracle.scalars | {"predicted_concepts": 200.0, "target_concepts": 503.0}
    more = {"ridge": replace(baselines["ridge"], scalars=scalars | {"predicted_concepts": 300.0})}
    partly = findings._collapsed(replace(oracle, scalars=scalars), more)
    assert (partly.answer, partly.tone) == ("partly, 200 concepts of 503", findings.OPEN)


def test_each_verdict_says_over_how_many_it_is(oracle, baselines) -> None:
    for said in findings.statements(oracle, baselines, DATA):
        assert re.search(r"n = \d|\d sequences", f"{said.sentence} {said.evidence}"), said.question


def test_the_description_of_a_run_fits_a_tag_and_says_the_gates(report) -> None:
    verdicts = gates.evaluate_gates(report.evaluation, report.baselines, leaks=True)
    text = run_note(replace(report, gates=verdicts))
    assert text.startswith("**Failed gates: no_leak.")
    assert len(text) < 5000
    for name, verdict in verdicts.items():
        assert re.search(rf"\| {name} +\| \**{verdict}", text), name
        assert verdict.threshold in text
    assert text.index("| no_leak") < text.index("| causal"), "what failed stands first"


def test_the_page_begins_with_words_and_ends_with_hashes(written) -> None:
    assert written.index("Verdict") < written.index(DATA.fingerprint)
    assert written.index("<h2>Examples") < written.index(DATA.fingerprint)


def test_equals_cannot_be_told_apart(baselines) -> None:
    twin = {"twin": baselines["ridge"]}
    said = findings.statements(baselines["ridge"], twin, DATA)[1]
    assert said.answer == "no, ties with twin"
    assert said.evidence == "n = 140. Minus twin, the strongest: +0.000 [+0.000, +0.000]."


def test_baselines_of_other_examples_are_refused(oracle) -> None:
    other = evaluate(Persistence(), DATA, "test", name="persistence")
    with pytest.raises(ValueError, match="oracle and persistence differ in split: val and test"):
        findings.statements(oracle, {"persistence": other}, DATA)


def test_nothing_to_evaluate_is_said() -> None:
    empty = make_dataset(n_chains=30, split=np.zeros(30, np.uint8))
    evaluated = evaluate(Persistence(), empty, "val", name="persistence")
    page = html_report(Report("Nothing", evaluated, empty))
    Strict(page)
    assert "nothing was evaluated" in page
    assert "No leak report was made" in page


def test_a_clean_dataset_is_called_clean(oracle) -> None:
    page = html_report(Report("x", oracle, DATA, warnings=[]))
    assert "no sequence stands in two splits" in page


def test_the_figures_and_the_numbers_behind_them_are_written(report, tmp_path) -> None:
    page, figures, numbers = write_evaluation(report, tmp_path / "new")
    assert page.read_text() == html_report(report)
    evaluated = report.evaluation
    assert json.loads(figures.read_text()) == evaluated.to_dict()
    with np.load(numbers) as arrays:
        np.testing.assert_array_equal(arrays["chains"], evaluated.chains)
        np.testing.assert_array_equal(arrays["stratum/unseen"], evaluated.strata["unseen"])
        np.testing.assert_array_equal(arrays["rank"], evaluated.per_example["rank"])
        for name, values in evaluated.per_example.items():
            np.testing.assert_allclose(arrays[name], values, rtol=1e-6)
