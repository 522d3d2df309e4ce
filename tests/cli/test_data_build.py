from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from encoder_maker import save_tiny_encoder
from wordnet_maker import LICENCE_LINES, NOUNS, VERBS, write_relations

from ocp_mamba.cli.data import data
from ocp_mamba.data.dataset import Dataset


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_tiny_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def chain_file(tmp_path):
    rows = [
        {"concepts": [f"leaf_{i}", f"kind {i % 5}", "thing"], "source": "wordnet"}
        for i in range(40)
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(*args):
    return CliRunner().invoke(data, [str(a) for a in args])


def test_build_from_chain_files(encoder, chain_file, tmp_path):
    out = tmp_path / "d.npz"
    result = run("build", "--chains", chain_file, "--encoder", encoder, "--out", out)
    assert result.exit_code == 0, result.output
    found = Dataset.load(out)
    assert found.fingerprint in result.output
    assert found.n_chains == 40
    assert found.meta["encoder"]["name"] == Path(encoder).name
    assert found.meta["licence"].startswith("unknown")
    assert f"Wrote {out}" in result.output
    assert "leaf 7" in found.texts
    assert not list(tmp_path.glob("*.encoding"))


def test_no_machine_path_gets_into_the_file(encoder, chain_file, tmp_path):
    out = tmp_path / "d.npz"
    run("build", "--chains", chain_file, "--encoder", encoder, "--out", out)
    assert str(tmp_path) not in json.dumps(Dataset.load(out).meta)
    assert str(Path(encoder).parent) not in json.dumps(Dataset.load(out).meta)


def test_build_from_a_wordnet_folder(encoder, tmp_path):
    for name, lines in (("data.noun", NOUNS), ("data.verb", VERBS)):
        (tmp_path / name).write_text(LICENCE_LINES + "".join(lines), encoding="utf-8")
    args = ["--wordnet", tmp_path, "--encoder", encoder, "--encoder-name", "org/tiny"]
    result = run("build", *args, "--sequences", 5, "--out", tmp_path / "w.npz")
    assert result.exit_code == 0, result.output
    assert "Leaves of WordNet to draw from: 3 of 5 chains kept" in result.output
    found = Dataset.load(tmp_path / "w.npz")
    assert found.meta["licence"].startswith("WordNet 3.0, Copyright 2006 by Princeton")
    assert found.meta["encoder"]["name"] == "org/tiny"
    assert found.chain_tmd.any(axis=1).all()


def test_build_with_relations(encoder, tmp_path):
    write_relations(tmp_path)
    args = ["--wordnet", tmp_path, "--encoder", encoder, "--sequences", 9]
    result = run("build", *args, "--relations", "hypernym, part", "--out", tmp_path / "r.npz")
    assert result.exit_code == 0, result.output
    assert "| steps by is part of" in result.output
    found = Dataset.load(tmp_path / "r.npz")
    assert found.relations == ("is a", "is part of")
    known = found.chain_relation > 0
    assert found.chain_confidence[known].min() == pytest.approx(8 / 11)
    assert known.sum() == len(found.chain_values) - found.n_chains


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ("part,whole", "'whole' is unknown; all, or some of hypernym, instance"),
        ("part,part", "names a relation twice"),
    ],
)
def test_relations_that_there_are_not(encoder, tmp_path, relations, message):
    common = ["--encoder", encoder, "--out", tmp_path / "d.npz"]
    result = run("build", "--wordnet", tmp_path, "--relations", relations, *common)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_input_errors_are_one_line_and_exit_code_2(encoder, chain_file, tmp_path):
    out = tmp_path / "d.npz"
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    cases = [
        (
            ["--chains", bad, "--encoder", encoder, "--out", out],
            "bad.jsonl, line 1: key",
        ),
        (["--chains", chain_file, "--encoder", tmp_path, "--out", out], "lacks config.json"),
        (["--wordnet", tmp_path, "--encoder", encoder, "--out", out], "data.noun cannot be read"),
        (
            ["--chains", chain_file, "--encoder", encoder, "--out", tmp_path / "no" / "d.npz"],
            "no does not exist",
        ),
    ]
    for args, message in cases:
        result = run("build", *args)
        assert result.exit_code == 2, result.output
        assert "Error: " in result.output
        assert message in result.output
        assert "Traceback" not in result.output
        assert not out.exists()


def test_contradictory_options(encoder, chain_file, tmp_path):
    common = ["--encoder", encoder, "--out", tmp_path / "d.npz"]
    neither = run("build", *common)
    both = run("build", "--wordnet", tmp_path, "--chains", chain_file, *common)
    drawn = run("build", "--chains", chain_file, "--sequences", 10, *common)
    assert "give either --wordnet FOLDER or --chains FILE" in neither.output
    assert "give either --wordnet FOLDER or --chains FILE" in both.output
    assert "--sequences does not go with --chains, only with --wordnet" in drawn.output
    named = run("build", "--chains", chain_file, "--relations", "all", *common)
    assert "--relations does not go with --chains, only with --wordnet" in named.output
    assert {neither.exit_code, both.exit_code, drawn.exit_code, named.exit_code} == {2}


def test_help_carries_an_example():
    help_text = run("build", "--help").output
    assert "  ocp-mamba data build --wordnet /usr" in help_text
    assert "--relations all" in help_text
    assert "entailment entails" in help_text


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TRIPLES = ["--triples", FIXTURES / "irregular_triples.tsv"]
TEXTS = ["--texts", FIXTURES / "irregular_texts.tsv"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (["--obo", FIXTURES / "irregular.obo", "--paths-per-leaf", 2], "beagle"),
        (["--owl", FIXTURES / "irregular.owl", "--text", "name+definition"], "dog: A pet that bar"),
        ([*TRIPLES, *TEXTS, "--relation", "_hypernym"], "animal"),
    ],
)
def test_build_from_an_ontology(encoder, tmp_path, source, text):
    out = tmp_path / "o.npz"
    result = run("build", *source, "--encoder", encoder, "--out", out)
    assert result.exit_code == 0, result.output
    assert "| irregular " in result.output
    found = Dataset.load(out)
    assert any(concept.startswith(text) for concept in found.texts)
    assert found.meta["ontology"]["irregular"]
    assert str(FIXTURES) not in json.dumps(found.meta)


def test_glosses_of_wordnet_are_encoded(encoder, tmp_path):
    for name, lines in (("data.noun", NOUNS), ("data.verb", VERBS)):
        (tmp_path / name).write_text(LICENCE_LINES + "".join(lines), encoding="utf-8")
    args = ["--wordnet", tmp_path, "--encoder", encoder, "--sequences", 5]
    out = tmp_path / "w.npz"
    result = run("build", *args, "--text", "name+definition", "--out", out)
    assert result.exit_code == 0, result.output
    found = Dataset.load(out)
    assert "moss: a gloss; with | a bar and @ 1 n 0000" in found.texts
    assert found.meta["text"] == "name+definition"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--obo", "a.obo", "--wordnet", "w"], "--wordnet and --obo found"),
        (["--obo", "a.obo", *TEXTS], "--texts does not go with --obo, only with --triples"),
        (["--wordnet", "w", "--paths-per-leaf", 2], "--paths-per-leaf does not go with --wordnet"),
        (["--chains", "c.jsonl", "--text", "name"], "--text does not go with --chains"),
        ([*TRIPLES, *TEXTS], "--triples needs --texts FILE and --relation NAME"),
        ([*TRIPLES, "--relation", "r"], "--triples needs --texts FILE and --relation NAME"),
        (["--owl", "a.owl", "--siblings", 2], "--siblings goes with --sequences"),
        ([*TRIPLES, *TEXTS, "--relation", "r"], "no edge has the relation 'r'; it has _hypernym"),
        (["--owl", FIXTURES / "irregular.obo"], "OWL as RDF/XML is wanted"),
        (["--obo", FIXTURES / "irregular.obo", "--sequences", 99], "sequences, 99 wanted"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_encoder_is_loaded(tmp_path, args, message):
    result = run("build", *args, "--encoder", "no/such", "--out", tmp_path / "d.npz")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "no/such" not in result.output
