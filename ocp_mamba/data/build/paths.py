"""Chains out of an ontology: paths from a leaf to a root, of a graph that may have any shape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ocp_mamba.data.build.chains import (
    MAX_CHAIN,
    NAME,
    NAME_AND_DEFINITION,
    Chain,
    CleanReport,
    clean_chains,
    clean_text,
    with_definition,
)
from ocp_mamba.data.build.ontology import IS_A, Finding, Ontology, OntologyReport, finding

LEFT_OUT = "left out, with their edges"
Parents = Mapping[str, Sequence[tuple[str, str]]]
"""The followed edges of each term: relation and wider term."""


def ontology_chains(
    ontology: Ontology,
    *,
    relations: Sequence[str] = (IS_A,),
    text: str = NAME,
    paths_per_leaf: int = 1,
    seed: int = 0,
) -> tuple[list[Chain], CleanReport, OntologyReport]:
    """Return chains from the leaves of an ontology up to its roots, cleaned.

    A leaf is a term that a followed edge leads from and none leads to. A term with several parents
    is the reason why a leaf can have many paths: in each of ``paths_per_leaf`` rounds every term
    has one of its edges, drawn from the seed, and each leaf gives the path along these edges. So
    leaves of one parent share the rest of their paths, and equal paths are one chain. A path takes
    the next of a term's edges where the drawn one leads to a text that it has already, and ends
    where none is left, or at 15 concepts.

    Args:
        ontology: as read from a file.
        relations: the relations to follow, from the narrower to the wider. Where there are several,
            or another one than `IS_A`, chains name the relation of each step.
        text: what is encoded for a concept, one of `TEXT_FORMS`. Terms of one text are one concept.
        paths_per_leaf: at most so many chains begin at a leaf.
        seed: of the draws.

    Returns:
        The chains, what cleaning left out, and the report on the ontology.
    """
    usable, findings = _usable(ontology, text)
    parents, edge_findings = _edges(ontology, usable, relations)
    children = {parent for edges in parents.values() for _, parent in edges}
    leaves = sorted(parents.keys() - children)
    named = tuple(relations) != (IS_A,)
    chains, clean = clean_chains(
        Chain(
            tuple(usable[term] for _, term in path),
            ontology.name,
            relations=tuple(ontology.plain_name(r) for r, _ in path[1:]) if named else (),
        )
        for path in _paths(leaves, parents, usable, paths_per_leaf, seed)
    )
    in_graph = parents.keys() | children
    counts = Counter(relation for _, relation, _ in ontology.edges)
    report = OntologyReport(
        ontology=" ".join(part for part in (ontology.name, ontology.version) if part),
        text=text,
        relations={name: counts[name] for name in ontology.relations},
        followed=tuple(relations),
        numbers={
            "terms": len(ontology.terms),
            "terms used": len(in_graph),
            "leaves": len(leaves),
            **_number_of_paths(parents, leaves),
        },
        findings=(
            *ontology.findings,
            *findings,
            *edge_findings,
            *_shape(parents, children, usable, len(usable.keys() - in_graph)),
        ),
    )
    return chains, clean, report


def _usable(ontology: Ontology, text: str) -> tuple[dict[str, str], list[Finding]]:
    """The text of each term that can be used, and what is irregular in the terms."""
    obsolete = [i for i, term in ontology.terms.items() if term.obsolete]
    present = {i: term for i, term in ontology.terms.items() if not term.obsolete}
    nameless = [i for i, term in present.items() if not clean_text(term.name)]
    named = {i: term for i, term in present.items() if clean_text(term.name)}
    texts = {i: clean_text(term.name) for i, term in named.items()}
    findings = [
        finding("obsolete terms", (_shown(i, ontology) for i in obsolete), LEFT_OUT),
        finding("terms without a name", nameless, LEFT_OUT),
    ]
    if text == NAME_AND_DEFINITION:
        full = {
            i: with_definition(texts[i], clean_text(term.definition)) for i, term in named.items()
        }
        plain = [texts[i] for i, term in named.items() if not clean_text(term.definition)]
        cut = [
            texts[i]
            for i, term in named.items()
            if term.definition and not full[i].endswith(clean_text(term.definition))
        ]
        findings += [
            finding("terms without a definition", plain, "their name alone is encoded"),
            finding("definitions that are too long", cut, "cut after a word"),
        ]
        texts = full
    owners: dict[str, list[str]] = defaultdict(list)
    for i, words in texts.items():
        owners[words].append(i)
    shared = [f"{words} ({', '.join(ids)})" for words, ids in owners.items() if len(ids) > 1]
    findings += [
        finding("texts of several terms", shared, "the terms are one concept"),
        finding(
            "alternative ids",
            (f"{other} of {i}" for other, i in ontology.alternatives.items()),
            "an edge that names one leads to its term",
        ),
    ]
    return texts, findings


def _edges(
    ontology: Ontology, usable: Mapping[str, str], relations: Sequence[str]
) -> tuple[dict[str, list[tuple[str, str]]], list[Finding]]:
    """The edges that chains may follow, by their narrower term, and what is irregular in them."""
    parents: dict[str, list[tuple[str, str]]] = defaultdict(list)
    to_nothing, to_itself = [], []
    for child, relation, parent in dict.fromkeys(ontology.edges):
        if relation not in relations:
            continue
        child, parent = (ontology.alternatives.get(i, i) for i in (child, parent))
        shown = f"{_shown(child, ontology)} {relation} {_shown(parent, ontology)}"
        if child not in ontology.terms or parent not in ontology.terms:
            to_nothing.append(shown)
        elif child == parent:
            to_itself.append(shown)
        elif child in usable and parent in usable:
            parents[child].append((relation, parent))
    return {child: sorted(set(edges)) for child, edges in parents.items()}, [
        finding("edges to terms that the file does not have", to_nothing, "left out"),
        finding("edges from a term to itself", to_itself, "left out"),
    ]


def _shape(
    parents: Parents, children: set[str], usable: Mapping[str, str], alone: int
) -> list[Finding]:
    """Roots, several parents and cycles among the followed edges."""
    several = [
        f"{usable[term]} ({len(edges)})"
        for term, edges in sorted(parents.items())
        if len({parent for _, parent in edges}) > 1
    ]
    roots = sorted(children - parents.keys())
    cycles = _cycles(parents)
    return [
        finding("terms without a followed edge", (), "left out", alone),
        finding("terms with several parents", several, "a path takes one, drawn by the seed"),
        finding(
            "roots beyond the first",
            (usable[root] for root in roots),
            "each ends chains",
            max(0, len(roots) - 1),
        ),
        finding(
            "groups of terms in a cycle",
            (" → ".join(usable[term] for term in cycle[:4]) for cycle in cycles),
            "a path ends or turns off before it repeats a concept",
        ),
    ]


def _cycles(parents: Parents) -> list[list[str]]:
    """The terms of each group in which every term leads to every other one."""
    terms = sorted(parents.keys() | {parent for edges in parents.values() for _, parent in edges})
    if not terms:
        return []
    row = {term: number for number, term in enumerate(terms)}
    pairs = [(row[child], row[parent]) for child, edges in parents.items() for _, parent in edges]
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    edges = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(terms), len(terms)))
    _, label = connected_components(edges, directed=True, connection="strong")
    groups: dict[int, list[str]] = defaultdict(list)
    for term, group in zip(terms, label.tolist(), strict=True):
        groups[group].append(term)
    return [group for group in groups.values() if len(group) > 1]


def _number_of_paths(parents: Parents, leaves: Iterable[str]) -> dict[str, int]:
    """How many paths lead from the leaves to roots; nothing where a cycle makes that unclear."""
    order = TopologicalSorter(
        {child: {parent for _, parent in edges} for child, edges in parents.items()}
    )
    paths: dict[str, int] = {}
    try:
        for term in order.static_order():
            above = {parent for _, parent in parents.get(term, ())}
            paths[term] = sum(paths[parent] for parent in above) or 1
    except CycleError:
        return {}
    return {"paths from a leaf to a root": sum(paths[leaf] for leaf in leaves)}


def _paths(
    leaves: Sequence[str],
    parents: Parents,
    texts: Mapping[str, str],
    rounds: int,
    seed: int,
) -> Iterator[list[tuple[str, str]]]:
    """One path of each leaf a round: pairs of a relation, empty for the leaf itself, and a term.

    A term's edges take turns in an order that is drawn again when all have had theirs.
    """
    rng = np.random.default_rng(seed)
    waiting: dict[str, list[int]] = {term: [] for term in sorted(parents)}
    for _ in range(rounds):
        drawn = {}
        for term, turns in waiting.items():
            edges = parents[term]
            turns[:] = turns or rng.permutation(len(edges)).tolist()
            first = turns.pop()
            drawn[term] = [edges[first], *edges[:first], *edges[first + 1 :]]
        yield from (_path(leaf, drawn, texts) for leaf in leaves)


def _path(leaf: str, drawn: Parents, texts: Mapping[str, str]) -> list[tuple[str, str]]:
    path, on_it = [("", leaf)], {texts[leaf]}
    while len(path) < MAX_CHAIN:
        options = drawn.get(path[-1][1], ())
        step = next((s for s in options if texts[s[1]] not in on_it), None)
        if step is None:
            break
        path.append(step)
        on_it.add(texts[step[1]])
    return path


def _shown(i: str, ontology: Ontology) -> str:
    """A term for a person: its name, or its id where it has none."""
    term = ontology.terms.get(i)
    return term.name if term and term.name else i
