"""Where the chains of `ocp-mamba data build` come from, and which options go with which source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from ocp_mamba.data.build.chains import NAME, Chain, draw_chains, read_chains
from ocp_mamba.data.build.obo import read_obo
from ocp_mamba.data.build.ontology import IS_A, Ontology
from ocp_mamba.data.build.owl import read_owl
from ocp_mamba.data.build.paths import ontology_chains
from ocp_mamba.data.build.triples import read_triples
from ocp_mamba.data.build.wordnet import LICENCE as WORDNET_LICENCE
from ocp_mamba.data.build.wordnet import wordnet_chains
from ocp_mamba.data.build.wordnet_relations import RELATIONS, relation_chains

SEQUENCES, SIBLINGS = 45_000, 5
"""Defaults of ``data build --wordnet``; None is a flag that was not given."""

SOURCES = ("wordnet", "obo", "owl", "triples", "chains")
ONTOLOGIES = ("obo", "owl", "triples")
DRAWN = ("wordnet", *ONTOLOGIES)
GOES_WITH = {
    "texts": ("triples",),
    "relations": DRAWN,
    "text": DRAWN,
    "sequences": DRAWN,
    "siblings": DRAWN,
    "paths_per_leaf": ONTOLOGIES,
}
"""The sources that an option belongs to."""

ALL = ("all",)
Log = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of ``data build`` that choose chains, None or empty where they were not given."""

    wordnet: Path | None = None
    obo: Path | None = None
    owl: Path | None = None
    triples: Sequence[Path] = ()
    chains: Sequence[Path] = ()
    texts: Path | None = None
    relations: tuple[str, ...] | None = None
    text: str | None = None
    sequences: int | None = None
    siblings: int | None = None
    paths_per_leaf: int | None = None
    seed: int = 0

    def source(self) -> str:
        """The one source that was given.

        Raises:
            click.UsageError: none or several were given, an option belongs to another source, or
                one that the source needs is missing.
        """
        given = [name for name in SOURCES if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) or "none of them"
            raise click.UsageError(
                "give either --wordnet FOLDER or --chains FILE (one or more), or --obo FILE, "
                f"--owl FILE, or --triples FILE; {found} found"
            )
        for option, sources in GOES_WITH.items():
            if getattr(self, option) is not None and given[0] not in sources:
                flags = ", ".join(f"--{name}" for name in sources)
                raise click.UsageError(
                    f"--{option.replace('_', '-')} does not go with --{given[0]}, only with {flags}"
                )
        if given[0] == "triples" and not (self.texts and self.relations):
            raise click.UsageError("--triples needs --texts FILE and --relation NAME beside it")
        if self.siblings and not self.sequences and given[0] in ONTOLOGIES:
            raise click.UsageError(
                "--siblings goes with --sequences: without it, all chains are used"
            )
        return given[0]


@dataclass(frozen=True)
class Source:
    """Chains to build from.

    Attributes:
        chains: as drawn or read.
        licence: of them.
        facts: what the dataset's ``meta`` says of them, by key.
    """

    chains: list[Chain]
    licence: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def open_source(asked: Asked, log: Log) -> Source:
    """Check the options, read the source and draw its chains; prints what was found.

    Raises:
        click.UsageError: as `Asked.source`, or a relation is unknown to the source.
        DatasetError: the source cannot be read, or gives too few chains.
    """
    source = asked.source()
    if source == "chains":
        return Source(read_chains(asked.chains), "unknown; see the owners of the chain files")
    if source == "wordnet":
        return _wordnet(asked, log)
    readers: dict[str, Callable[[], Ontology]] = {
        "obo": lambda: read_obo(_file(asked.obo)),
        "owl": lambda: read_owl(_file(asked.owl)),
        "triples": lambda: read_triples(asked.triples, _file(asked.texts)),
    }
    return _ontology(readers[source](), asked, f"--{source}", log)


def _file(path: Path | None) -> Path:
    assert path is not None  # `Asked.source` has seen it
    return path


def _wordnet(asked: Asked, log: Log) -> Source:
    assert asked.wordnet is not None
    relations = tuple(RELATIONS) if asked.relations == ALL else asked.relations or ()
    for name in relations:
        if name not in RELATIONS:
            raise click.UsageError(
                f"--relations: {name!r} is unknown; all, or some of {', '.join(RELATIONS)}"
            )
    draw = partial(relation_chains, relations=relations) if relations else wordnet_chains
    text = asked.text or NAME
    drawn, leaves = draw(
        asked.wordnet,
        sequences=asked.sequences or SEQUENCES,
        siblings=asked.siblings or SIBLINGS,
        seed=asked.seed,
        text=text,
    )
    log(f"Leaves of WordNet to draw from: {leaves}\n")
    return Source(drawn, WORDNET_LICENCE, {} if text == NAME else {"text": text})


def _ontology(ontology: Ontology, asked: Asked, flag: str, log: Log) -> Source:
    relations = ontology.relations if asked.relations == ALL else asked.relations or (IS_A,)
    ontology.require_relations(relations, flag)
    chains, clean, report = ontology_chains(
        ontology,
        relations=relations,
        text=asked.text or NAME,
        paths_per_leaf=asked.paths_per_leaf or 1,
        seed=asked.seed,
    )
    log(f"{report.to_markdown()}\n\nChains to draw from: {clean}\n")
    if asked.sequences:
        chains = draw_chains(
            chains,
            sequences=asked.sequences,
            siblings=asked.siblings or SIBLINGS,
            seed=asked.seed,
        )
    licence = ontology.licence or f"unknown; see the owners of {ontology.name}"
    return Source(chains, licence, {"ontology": report.to_meta()})
