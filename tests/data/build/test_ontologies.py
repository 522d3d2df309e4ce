from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from encoder_maker import CountingEncoder

from ocp_mamba.data.build.builder import build_dataset
from ocp_mamba.data.build.obo import read_obo
from ocp_mamba.data.build.ontology import Ontology, Term
from ocp_mamba.data.build.owl import read_owl
from ocp_mamba.data.build.paths import ontology_chains
from ocp_mamba.data.build.triples import read_triples
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
OBO, OWL = FIXTURES / "irregular.obo", FIXTURES / "irregular.owl"
TRIPLES, TEXTS = FIXTURES / "irregular_triples.tsv", FIXTURES / "irregular_texts.tsv"


def concepts(chains):
    return {chain.concepts for chain in chains}


def found(report):
    return {f.what: (f.count, f.examples) for f in report.findings if f.count}


def tree(*edges: tuple[str, str], **terms: Term) -> Ontology:
    """An ontology whose ids are its names."""
    ids = {i for edge in edges for i in edge}
    return Ontology(
        "toy", {i: Term(i) for i in ids} | terms, tuple((a, "is_a", b) for a, b in edges)
    )


# --- OBO -------------------------------------------------------------------------------------


def test_each_irregularity_of_an_obo_file_is_handled_and_named():
    chains, clean, report = ontology_chains(read_obo(OBO), seed=0)
    second = {chain.concepts[2] for chain in chains if chain.concepts[0] == "poodle"}
    assert second <= {"animal", "pet"}
    assert concepts(chains) == {
        ("poodle", "dog", *second, "thing"),
        ("beagle", "dog", *second, "thing"),
        ("chick", "chicken", "egg"),
    }
    assert clean.short == 1  # dog is a pack
    assert found(report) == {
        "imports of other files": (1, ("http://example.org/upper.obo",)),
        "obsolete terms": (1, ("old dog",)),
        "terms without a name": (1, ("T:8",)),
        "texts of several terms": (1, ("dog (T:4, T:10)",)),
        "alternative ids": (1, ("T:20 of T:2",)),
        "edges to terms that the file does not have": (1, ("beagle is_a T:99",)),
        "edges from a term to itself": (1, ("beagle is_a beagle",)),
        "terms without a followed edge": (1, ()),
        "terms with several parents": (1, ("dog (2)",)),
        "roots beyond the first": (1, ("thing", "pack")),
        "groups of terms in a cycle": (1, ("chicken → egg",)),
    }
    assert report.ontology == "toy 2026-01-01"
    assert report.relations == {"is_a": 13, "part_of": 1}


def test_obo_definitions_and_relations():
    ontology = read_obo(OBO)
    assert ontology.licence == "https://example.org/cc0"
    assert ontology.terms["T:1"].definition == 'Anything at all, "whatever" it is.'
    chains, _, report = ontology_chains(
        ontology, relations=("is_a", "part_of"), text="name+definition", paths_per_leaf=8
    )
    paths = {chain.concepts: chain.relations for chain in chains}
    dog = "dog: A pet that barks."
    assert paths["poodle", dog, "pack"] == ("is a", "part of")
    assert ("poodle", dog, "animal: A living thing that moves.", ontology_text()) in paths
    assert ("poodle", dog, "pet", ontology_text()) in paths
    assert found(report)["terms without a definition"][0] == 9
    assert "texts of several terms" not in found(report)  # the definition tells them apart


def ontology_text() -> str:
    return 'thing: Anything at all, "whatever" it is.'


def test_a_relation_that_the_file_does_not_have():
    with pytest.raises(DatasetError, match="no edge has the relation 'has_part'; it has is_a, "):
        read_obo(OBO).require_relations(["is_a", "has_part"], "--obo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no ontology\n", "not in OBO format"),
        (b"[Term]\nname: no id\n", "not in OBO format"),
        (b"format-version: 1.2\n", "holds no stanza"),
        (gzip.compress(b"[Term]\nid: T:1\n"), "is no UTF-8 text"),
    ],
)
def test_what_is_no_obo_file(tmp_path, content, message):
    path = tmp_path / "a.obo"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_obo(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_obo(tmp_path / "none.obo")


# --- OWL -------------------------------------------------------------------------------------


def test_each_irregularity_of_an_owl_file_is_handled_and_named():
    ontology = read_owl(OWL)
    chains, _, report = ontology_chains(ontology)
    assert concepts(chains) == {
        ("poodle", "dog", "animal", "thing"),
        ("beagle", "dog", "animal", "thing"),
    }
    assert found(report) == {
        "imports of other files": (1, ("http://example.org/upper.owl",)),
        "class expressions without a plain edge": (1, ("dog",)),
        "classes with several labels": (1, ("animal / Tier",)),
        "obsolete terms": (1, ("gone",)),
        "terms without a name": (1, ("http://example.org/toy.owl#nameless",)),
        "alternative ids": (1, ("T:20 of T:2",)),
        "edges to terms that the file does not have": (
            1,
            ("beagle is_a http://example.org/toy.owl#elsewhere",),
        ),
        "terms without a followed edge": (1, ()),  # the pack
    }
    assert (ontology.version, ontology.licence) == ("2026-01-01", "https://example.org/cc0")
    assert report.relations == {"is_a": 7, "part_of": 2}
    followed, _, _ = ontology_chains(ontology, relations=("is_a", "part_of"), paths_per_leaf=8)
    assert ("poodle", "dog", "pack") in concepts(followed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Prefix(:=<http://x#>)\nOntology(<http://x>)", "is no XML.*OWL as RDF/XML is wanted"),
        ('<Ontology xmlns="http://www.w3.org/2002/07/owl#"/>', "root element Ontology found"),
        ("", "root element nothing found"),
        (
            '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>',
            "holds no named class",
        ),
        (
            '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><a></rdf:RDF>',
            "cannot be read",
        ),
    ],
)
def test_what_is_no_owl_file(tmp_path, content, message):
    path = tmp_path / "a.owl"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_owl(path)


def test_an_owl_file_reads_no_other_file(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    text = OWL.read_text().replace(
        'ENTITY owl "http://www.w3.org/2002/07/owl#"',
        f'ENTITY owl "http://www.w3.org/2002/07/owl#"> <!ENTITY other SYSTEM "{secret}"',
    )
    path = tmp_path / "a.owl"
    path.write_text(text.replace("<rdfs:label>pack<", "<rdfs:label>pack &other;<"))
    names = {term.name.strip() for term in read_owl(path).terms.values()}
    assert "pack" in names
    assert not any("secret" in name for name in names)


# --- triples ---------------------------------------------------------------------------------


def test_each_irregularity_of_triples_is_handled_and_named():
    chains, _, report = ontology_chains(
        read_triples([TRIPLES], TEXTS), relations=("_hypernym",), text="name+definition"
    )
    assert concepts(chains) == {
        ("poodle: a curly dog, of France", "dog: a pet", "animal: it moves", "thing"),
        ("beagle", "dog: a pet", "animal: it moves", "thing"),
    }
    assert {chain.relations for chain in chains} == {("hypernym",) * 3}
    assert found(report) == {
        "ids without a text": (2, ("blank", "lost")),
        "empty texts": (1, ("blank",)),
        "further texts of an id": (1, ("dog",)),
        "triples that are there twice": (1, ()),
        "terms without a definition": (2, ("beagle", "thing")),
        "edges to terms that the file does not have": (
            2,
            ("lost _hypernym dog", "blank _hypernym dog"),
        ),
        "terms without a followed edge": (1, ()),
    }


def test_triples_that_cannot_be_read(tmp_path):
    bad = tmp_path / "bad.tsv"
    bad.write_text("a\tb\tc\n\na\tb\n")
    with pytest.raises(DatasetError, match=r"bad.tsv, line 3: 2 fields found, 3 wanted"):
        read_triples([bad], TEXTS)
    bad.write_text("a\tb\tc\td\n")
    with pytest.raises(DatasetError, match=r"line 1: 4 fields found, 3 wanted"):
        read_triples([bad], TEXTS)
    bad.write_text("")
    with pytest.raises(DatasetError, match="holds no triples"):
        read_triples([bad], TEXTS)
    with pytest.raises(DatasetError, match=r"text file .*none.tsv: cannot be read"):
        read_triples([TRIPLES], tmp_path / "none.tsv")


# --- paths -----------------------------------------------------------------------------------


def test_a_dag_of_many_paths_gives_a_bounded_number_that_the_seed_decides():
    width, depth = 4, 5
    edges = [
        (f"{level} {i}", f"{level + 1} {j}")
        for level in range(depth)
        for i in range(width)
        for j in range(width)
    ]
    ontology = tree(*edges)
    one, _, report = ontology_chains(ontology, seed=0)
    assert report.numbers["paths from a leaf to a root"] == width ** (depth + 1)
    assert len(one) == width
    assert len({chain.concepts[2:] for chain in one}) < width  # what follows a parent is shared
    several, _, _ = ontology_chains(ontology, paths_per_leaf=3, seed=0)
    assert concepts(one) < concepts(several)
    assert len(several) <= 3 * width
    again, _, _ = ontology_chains(ontology, paths_per_leaf=3, seed=0)
    assert several == again
    other, _, _ = ontology_chains(ontology, paths_per_leaf=3, seed=1)
    assert several != other


def test_a_path_ends_at_fifteen_concepts_and_never_repeats_a_text():
    line = [(f"c{i}", f"c{i + 1}") for i in range(30)]
    (chain,), _, _ = ontology_chains(tree(*line))
    assert chain.concepts == tuple(f"c{i}" for i in range(15))
    same = tree(("leaf", "a"), ("a", "b"), ("b", "c"), ("b", "d"), c=Term("a"))
    (chain,), _, _ = ontology_chains(same)
    assert chain.concepts == ("leaf", "a", "b", "d")


def test_a_cycle_without_a_way_in_gives_no_chains():
    chains, _, report = ontology_chains(tree(("a", "b"), ("b", "c"), ("c", "a")))
    assert chains == []
    assert found(report)["groups of terms in a cycle"] == (1, ("a → b → c",))
    assert "paths from a leaf to a root" not in report.numbers


def test_long_definitions_are_cut_after_a_word():
    terms = {"leaf": Term("leaf", "word " * 200)}
    chains, _, report = ontology_chains(
        tree(("leaf", "a"), ("a", "b"), **terms), text="name+definition"
    )
    text = chains[0].concepts[0]
    assert text.endswith("word")
    assert len(text) <= 500
    assert found(report)["definitions that are too long"] == (1, ("leaf",))


def test_the_report_is_kept_in_the_file(tmp_path):
    chains, _, report = ontology_chains(read_obo(OBO), paths_per_leaf=2)
    dataset, _ = build_dataset(
        chains,
        CountingEncoder(),
        seed=0,
        licence="own",
        cache_dir=tmp_path / "cache",
        progress=False,
        facts={"ontology": report.to_meta()},
    )
    dataset.save(tmp_path / "d.npz")
    kept = Dataset.load(tmp_path / "d.npz").meta["ontology"]
    assert kept == report.to_meta()
    assert {
        "what": "obsolete terms",
        "count": 1,
        "examples": ["old dog"],
        "done": "left out, with their edges",
    } in kept["irregular"]
    assert "| obsolete terms" in report.to_markdown()
