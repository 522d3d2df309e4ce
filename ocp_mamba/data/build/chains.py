"""Chains of concepts as text: reading JSONL files, cleaning, counting what was dropped, drawing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.config import MIN_CONTEXT
from ocp_mamba.data.build.tmd import UNKNOWN, Codes, codes
from ocp_mamba.errors import DatasetError, shown
from ocp_mamba.system.parsing import json_lines

MIN_CHAIN, MAX_CHAIN = 3, 15
"""Fewest and most concepts of a chain."""

NAME, NAME_AND_DEFINITION = "name", "name+definition"
TEXT_FORMS = (NAME, NAME_AND_DEFINITION)
"""What is encoded for a concept."""

LONGEST_TEXT = 500
"""Characters of a text with a definition; encoders read no more than a few hundred words."""


@dataclass(frozen=True)
class Chain:
    """An ordered path of concepts through an ontology, with its source and TMD codes.

    ``relations`` and ``confidences`` say by which relation each concept but the first follows the
    one before it (None where unknown), and its confidence, 0..1. Empty: they are unknown.
    """

    concepts: tuple[str, ...]
    source: str
    codes: Codes = UNKNOWN
    relations: tuple[str | None, ...] = ()
    confidences: tuple[float, ...] = ()


@dataclass(frozen=True)
class CleanReport:
    """What cleaning did.

    Attributes:
        found: chains before.
        kept: chains after.
        cut: chains longer than 15 that were cut to their first 15 concepts.
        long: chains longer than 15, dropped where they are not to be cut.
        short: chains of fewer than 3 concepts, dropped.
        repeating: chains that name a concept twice, dropped.
        duplicates: chains equal to an earlier one, dropped.
    """

    found: int
    kept: int
    cut: int
    long: int
    short: int
    repeating: int
    duplicates: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.kept:,} of {self.found:,} chains kept; dropped: "
            f"{self.duplicates:,} duplicates, {self.short:,} shorter than {MIN_CHAIN}, "
            f"{self.long:,} longer than {MAX_CHAIN}, {self.repeating:,} that repeat a concept; "
            f"cut to {MAX_CHAIN} concepts: {self.cut:,}"
        )


def clean_text(text: str) -> str:
    """A concept's text with underscores as spaces and runs of white space as one space."""
    return " ".join(text.replace("_", " ").split())


def with_definition(name: str, definition: str) -> str:
    """``name: definition``, cut after a word where it is longer than `LONGEST_TEXT`."""
    text = f"{name}: {definition}" if definition else name
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT + 1].rsplit(" ", 1)[0]


def clean_chains(chains: Iterable[Chain], *, cut: bool = True) -> tuple[list[Chain], CleanReport]:
    """Keep the chains that can be learnt from, each once, and count the others.

    A chain longer than 15 is cut at its end, as the start of a path is itself a path; without
    ``cut`` it is dropped. A chain that names a concept twice is dropped: it is a cycle,
    not a path. Chains are equal if their concepts are, whatever their source or relations.
    """
    seen: set[tuple[str, ...]] = set()
    kept = []
    count: Counter[str] = Counter()
    for chain in chains:
        concepts = chain.concepts[:MAX_CHAIN]
        count["found"] += 1
        if len(chain.concepts) > MAX_CHAIN:
            count["cut" if cut else "long"] += 1
            if not cut:
                continue
        if len(concepts) < MIN_CHAIN:
            count["short"] += 1
        elif len(set(concepts)) < len(concepts):
            count["repeating"] += 1
        elif concepts in seen:
            count["duplicates"] += 1
        else:
            seen.add(concepts)
            steps = len(concepts) - 1
            kept.append(
                replace(
                    chain,
                    concepts=concepts,
                    relations=chain.relations[:steps],
                    confidences=chain.confidences[:steps],
                )
            )
    names = ("found", "cut", "long", "short", "repeating", "duplicates")
    return kept, CleanReport(kept=len(kept), **{name: count[name] for name in names})


def draw_chains(
    chains: Sequence[Chain], *, sequences: int, siblings: int, seed: int
) -> list[Chain]:
    """Draw chains until they give the wanted number of OCP sequences.

    Chains are drawn uniformly; each brings up to ``siblings - 1`` others that differ from it in
    their first concept only. So ``siblings`` sets how many concepts a number of sequences has:
    1 draws each chain by itself and gives most concepts.

    Raises:
        DatasetError: the chains have fewer sequences than wanted, or an argument is below 1.
    """
    for name, value in (("sequences", sequences), ("siblings", siblings)):
        if value < 1:
            raise DatasetError(f"{name} must be at least 1, got {value}")
    available = sum(len(chain.concepts) - MIN_CONTEXT for chain in chains)
    if available < sequences:
        raise DatasetError(
            f"the {len(chains):,} chains give {available:,} sequences, {sequences:,} wanted"
        )
    order = [chains[i] for i in np.random.default_rng(seed).permutation(len(chains))]
    families: dict[tuple[str, ...], list[Chain]] = defaultdict(list)
    for chain in order:
        families[chain.concepts[1:]].append(chain)
    drawn: dict[tuple[str, ...], Chain] = {}
    total = 0
    for chain in order:
        if total >= sequences:
            break
        if chain.concepts in drawn:
            continue
        family = [c for c in families[chain.concepts[1:]] if c.concepts not in drawn]
        for member in family[:siblings]:
            drawn[member.concepts] = member
            total += len(member.concepts) - MIN_CONTEXT
    return list(drawn.values())


def read_chains(paths: Sequence[str | Path]) -> list[Chain]:
    """Read chain files, one JSON object a line; blank lines are skipped.

    Each object has ``concepts`` (texts) and ``source``; ``chain_length``, where present, must be
    their number. TMD codes come from ``metadata``: ``lexname`` gives domain and modifier, ``pos``
    the task; without them they are unknown. ``relations`` names by which relation each concept but
    the first follows the one before it (null for unknown), ``confidences`` gives the confidences of
    these relations, 0..1; both may be left out. Other keys are ignored. The chains are not cleaned.

    Raises:
        DatasetError: a file cannot be read, or a line is not such an object; names file and line.
    """
    return [chain for path in paths for chain in _read_file(Path(path))]


def _read_file(path: Path) -> Iterator[Chain]:
    for number, row in json_lines(path, DatasetError, "chain file"):
        yield _chain(row, f"chain file {path}, line {number}")


def _chain(row: dict[str, Any], place: str) -> Chain:
    concepts = _concepts(row, place)
    source = row.get("source")
    if not isinstance(source, str) or not source.strip():
        raise DatasetError(f"{place}: key 'source': {shown(source)} found, a name wanted")
    length = row.get("chain_length", len(concepts))
    if length != len(concepts):
        raise DatasetError(
            f"{place}: key 'chain_length': {shown(length)} found, but there are {len(concepts)} "
            "concepts"
        )
    relations = _relations(row, len(concepts) - 1, place)
    return Chain(
        concepts,
        source.strip(),
        _codes(row.get("metadata", {}), place),
        relations,
        _confidences(row, relations, place),
    )


def _concepts(row: dict[str, Any], place: str) -> tuple[str, ...]:
    found = row.get("concepts")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DatasetError(f"{place}: key 'concepts': {shown(found)} found, a list of texts wanted")
    concepts = tuple(clean_text(text) for text in found)
    if "" in concepts:
        raise DatasetError(f"{place}: key 'concepts': concept {concepts.index('')} is blank")
    return concepts


def _relations(row: dict[str, Any], steps: int, place: str) -> tuple[str | None, ...]:
    """Names of a chain's relations, one a step; empty where the row has none."""
    found = row.get("relations")
    if found is None:
        return ()
    named = isinstance(found, list) and all(
        name is None or (isinstance(name, str) and name.strip()) for name in found
    )
    if not named or len(found) != steps:
        raise DatasetError(
            f"{place}: key 'relations': {shown(found)} found, a list of {steps} names or null "
            "wanted, one for each concept but the first"
        )
    return tuple(name and name.strip() for name in found)


def _confidences(
    row: dict[str, Any], relations: tuple[str | None, ...], place: str
) -> tuple[float, ...]:
    """Confidences of a chain's relations; empty where the row has none."""
    found = row.get("confidences")
    if found is None:
        return ()
    if not relations:
        raise DatasetError(f"{place}: key 'confidences': found without 'relations'")
    is_valid = isinstance(found, list) and all(
        isinstance(c, int | float) and not isinstance(c, bool) and 0 <= c <= 1 for c in found
    )
    if not is_valid or len(found) != len(relations):
        raise DatasetError(
            f"{place}: key 'confidences': {shown(found)} found, a list of {len(relations)} numbers "
            "from 0 to 1 wanted, one for each relation"
        )
    return tuple(map(float, found))


def _codes(metadata: Any, place: str) -> Codes:
    if not isinstance(metadata, dict):
        raise DatasetError(f"{place}: key 'metadata': {shown(metadata)} found, an object wanted")
    try:
        return codes(metadata.get("lexname"), metadata.get("pos"))
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{place}: key 'metadata': {error}") from error
