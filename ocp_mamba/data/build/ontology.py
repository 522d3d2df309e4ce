"""An ontology as a graph of terms, whatever file it came from, and what is irregular in it.

The readers `obo`, `owl` and `triples` make an `Ontology`; `paths` makes chains of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

from ocp_mamba.data.build.chains import clean_text
from ocp_mamba.errors import DatasetError

IS_A = "is_a"
"""The relation that is followed where no other is asked for."""

SHOWN = 3
"""Examples of each irregularity."""

LONGEST_EXAMPLE = 80

Edge = tuple[str, str, str]
"""Id of the narrower term, relation, id of the wider term."""


@dataclass(frozen=True)
class Term:
    """A term of an ontology.

    Attributes:
        name: its label; empty where it has none.
        definition: empty where it has none.
        obsolete: whether its makers have withdrawn it.
    """

    name: str = ""
    definition: str = ""
    obsolete: bool = False


@dataclass(frozen=True)
class Finding:
    """How often something irregular occurs in a file, and what the build does about it.

    Attributes:
        what: such as ``obsolete terms``.
        count: how many.
        examples: a few of them.
        done: what the build does with them.
    """

    what: str
    count: int
    examples: tuple[str, ...]
    done: str


@dataclass(frozen=True)
class Ontology:
    """Terms and the typed edges between them.

    Attributes:
        name: of the ontology; the source of its chains.
        terms: by id.
        edges: all of them, also those that no chain follows.
        version: as the file states it; empty where it does not.
        licence: as the file states it; empty where it does not.
        alternatives: the id of a term by each other id that it has.
        relation_names: what a dataset calls a relation, where that is not its id in plain words.
        findings: what the reader met.
    """

    name: str
    terms: Mapping[str, Term]
    edges: tuple[Edge, ...]
    version: str = ""
    licence: str = ""
    alternatives: Mapping[str, str] = field(default_factory=dict)
    relation_names: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations that its edges have, sorted, `IS_A` first."""
        found = {relation for _, relation, _ in self.edges}
        return tuple(sorted(found, key=lambda name: (name != IS_A, name)))

    def require_relations(self, wanted: Iterable[str], place: str) -> None:
        """Refuse relations that no edge has.

        Raises:
            DatasetError: names the first of them, and those that there are.
        """
        for name in wanted:
            if name not in self.relations:
                raise DatasetError(
                    f"{place}: no edge has the relation {name!r}; it has "
                    f"{', '.join(self.relations) or 'no edges at all'}"
                )

    def plain_name(self, relation: str) -> str:
        """What a dataset calls a relation."""
        return clean_text(self.relation_names.get(relation, relation))


@dataclass(frozen=True)
class OntologyReport:
    """What an ontology is like, and what became of it.

    Attributes:
        ontology: its name and version.
        text: what is encoded for a concept.
        relations: number of edges of each relation in the file.
        followed: the relations that the chains follow.
        numbers: counts that are not irregular, by name.
        findings: what is irregular, with what was done.
    """

    ontology: str
    text: str
    relations: dict[str, int]
    followed: tuple[str, ...]
    numbers: dict[str, int]
    findings: tuple[Finding, ...]

    def to_meta(self) -> dict[str, Any]:
        """Return it as plain values, for a dataset's ``meta``."""
        return {
            "name": self.ontology,
            "text": self.text,
            "relations": self.relations,
            "followed": list(self.followed),
            "numbers": self.numbers,
            "irregular": [
                asdict(finding) | {"examples": list(finding.examples)} for finding in self.findings
            ],
        }

    def to_markdown(self) -> str:
        """Return two tables: numbers, and what is irregular."""
        edges = [
            [f"edges by {name}{'' if name in self.followed else ' (not followed)'}", n]
            for name, n in self.relations.items()
        ]
        numbers = [*self.numbers.items(), *edges]
        rows = [
            [f.what, f"{f.count:,}", f.done, "; ".join(f.examples)]
            for f in self.findings
            if f.count
        ]
        regular = ", ".join(f.what for f in self.findings if not f.count)
        parts = [
            f"Ontology {self.ontology}",
            tabulate(
                [[name, f"{n:,}"] for name, n in numbers],
                ["number", "value"],
                tablefmt="github",
                disable_numparse=True,
            ),
            tabulate(
                rows,
                ["irregular", "how many", "what was done", "examples"],
                tablefmt="github",
                disable_numparse=True,
            )
            if rows
            else "",
            f"None found: {regular}." if regular else "",
        ]
        return "\n\n".join(part for part in parts if part)


def finding(what: str, found: Iterable[str], done: str, count: int | None = None) -> Finding:
    """Make a `Finding` out of all cases; the first few are its examples."""
    cases = list(found)
    examples = tuple(
        case if len(case) <= LONGEST_EXAMPLE else f"{case[: LONGEST_EXAMPLE - 1]}…"
        for case in cases[:SHOWN]
    )
    return Finding(what, len(cases) if count is None else count, examples, done)
