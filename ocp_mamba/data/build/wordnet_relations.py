"""Chains out of a WordNet folder that follow several relations, not the hypernym alone.

Every relation leads from the narrower to the wider: from a thing to its kind, whole or group, from
an act to what it entails or causes, from a term to its field or region.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ocp_mamba.data.build.chains import (
    MAX_CHAIN,
    NAME,
    Chain,
    CleanReport,
    clean_chains,
    clean_text,
    draw_chains,
)
from ocp_mamba.data.build.tmd import LEXICOGRAPHER_FILES, codes
from ocp_mamba.data.build.wordnet import SOURCE, Key, Synset, read_wordnet
from ocp_mamba.errors import DatasetError

RELATIONS: Mapping[str, tuple[str, str]] = {
    "hypernym": ("@", "is a"),
    "instance": ("@i", "is an instance of"),
    "member": ("#m", "is a member of"),
    "substance": ("#s", "is a substance of"),
    "part": ("#p", "is part of"),
    "entailment": ("*", "entails"),
    "cause": (">", "causes"),
    "topic": (";c", "is a term of"),
    "region": (";r", "is a term used in"),
}
"""WordNet's symbol (wninput(5WN)) of each relation that a chain may follow, and its name there."""

COUNTS_FILE = "cntlist.rev"
SENSE_TYPES = {"n": "1", "v": "2"}
"""Parts of speech, as sense keys give them (senseidx(5WN))."""

Step = tuple[str, Key]
"""A relation's name, and the synset that it leads to."""


def relation_chains(
    folder: str | Path,
    relations: Sequence[str],
    *,
    sequences: int,
    siblings: int,
    seed: int,
    text: str = NAME,
) -> tuple[list[Chain], CleanReport]:
    """Chains of leaves drawn from a WordNet folder that follow the given relations.

    A leaf is a noun or verb synset that none of these relations leads to. Each gives one chain, a
    walk: at every synset one of its relations is drawn, then one of the synsets that it leads to,
    among those whose text is not yet in the walk. A walk ends where there is none, or at 15
    concepts. Leaves whose first step leads to one synset share the walk from there on. Of several
    relations a chain has two at least: walks of one alone are left out.

    The confidence of a step is the probability that both words are used in the meanings between
    which WordNet states the relation, as if they were independent: the product of both
    `sense_shares`.

    Args:
        folder: holds ``data.noun``, ``data.verb`` and ``cntlist.rev``.
        relations: keys of `RELATIONS`.
        sequences: chains are drawn until they give this number of OCP sequences.
        siblings: as `draw_chains`.
        seed: of the walks, and as `draw_chains`.
        text: what is encoded for a concept, one of `TEXT_FORMS`.

    Returns:
        The chains drawn, and the report on all chains that they were drawn from.

    Raises:
        DatasetError: as `read_wordnet`, `sense_shares` and `draw_chains`.
    """
    synsets = read_wordnet(folder)
    shares = sense_shares(folder, synsets)
    steps = _steps(synsets, relations)
    reached = {target for found in steps.values() for _, target in found}
    texts = {key: synset.text(text) for key, synset in synsets.items()}
    walks = _Walks(texts, steps, seed)
    walked = (
        _chain(synsets, texts, shares, leaf, walks.of(leaf))
        for leaf in sorted(steps.keys() - reached)
    )
    fewest = min(len(relations), 2)
    chains, report = clean_chains(c for c in walked if len(set(c.relations)) >= fewest)
    return draw_chains(chains, sequences=sequences, siblings=siblings, seed=seed), report


def sense_shares(folder: str | Path, synsets: Mapping[Key, Synset]) -> dict[Key, float]:
    """How likely a synset's first word is used in the synset's meaning, 0..1.

    With c tagged uses of the word in this meaning, C in any of its n meanings as noun or verb, it
    is (c + 1) / (C + n), Laplace's rule of succession: 1 for a word of one meaning, 1 / n for one
    that was never tagged. ``cntlist.rev`` has WordNet's counts of uses tagged in running text.

    Args:
        folder: holds ``cntlist.rev``.
        synsets: all of the folder's.

    Raises:
        DatasetError: the file is missing, unreadable or not in WordNet's format; names the line.
    """
    counts = _read_counts(Path(folder) / COUNTS_FILE)
    weights: dict[Key, int] = {}
    totals: Counter[str] = Counter()
    for key, synset in synsets.items():
        kind = SENSE_TYPES[key[0]]
        for number, (word, lex_id) in enumerate(synset.words):
            weight = counts.get((word.lower(), kind, synset.lexname, lex_id), 0) + 1
            totals[word.lower()] += weight
            if number == 0:
                weights[key] = weight
    return {key: weight / totals[synsets[key].lemma.lower()] for key, weight in weights.items()}


def _read_counts(path: Path) -> dict[tuple[str, str, str, int], int]:
    """Tagged uses by word, part of speech, lexicographer file and number there.

    A line is ``lemma%ss_type:lex_filenum:lex_id:head:head_id sense_number tag_cnt`` (cntlist(5WN)).
    """
    counts = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} cannot be read: {error}; the confidences of relations come from its counts"
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            sense, _, count = line.split()
            lemma, _, rest = sense.rpartition("%")
            kind, file, lex_id, *_ = rest.split(":")
            key = (clean_text(lemma), kind, LEXICOGRAPHER_FILES[int(file)], int(lex_id))
            counts[key] = int(count)
        except (ValueError, IndexError) as error:
            raise DatasetError(
                f"{path}:{number}: is no count in WordNet's format: {line[:60]!r}; wanted such as "
                "'body%1:08:00:: 1 110'"
            ) from error
    return counts


def _steps(synsets: Mapping[Key, Synset], relations: Sequence[str]) -> dict[Key, list[Step]]:
    """The possible next steps from each synset that has any."""
    names = dict(RELATIONS[relation] for relation in relations)
    steps = {}
    for key, synset in synsets.items():
        found = [(names[symbol], target) for symbol, target in synset.pointers if symbol in names]
        for _, (part_of_speech, offset) in found:
            if (part_of_speech, offset) not in synsets:
                raise DatasetError(
                    f"synset {part_of_speech} {offset:08d} is pointed to but does not exist"
                )
        if found:
            steps[key] = found
    return steps


class _Walks:
    """Walks drawn from one seed; leaves with the same second synset share the rest of the walk."""

    def __init__(
        self, texts: Mapping[Key, str], steps: Mapping[Key, list[Step]], seed: int
    ) -> None:
        self._texts, self._steps = texts, steps
        self._rng = np.random.default_rng(seed)
        self._upwards: dict[Key, list[Step]] = {}

    def of(self, leaf: Key) -> list[Step]:
        """The steps of a leaf's walk, 14 at most."""
        first = self._draw(leaf, {self._texts[leaf]})
        if first is None:
            return []
        if first[1] not in self._upwards:
            self._upwards[first[1]] = self._walk(first[1], MAX_CHAIN - 2)
        return [first, *self._upwards[first[1]]]

    def _walk(self, key: Key, longest: int) -> list[Step]:
        texts = {self._texts[key]}
        walked: list[Step] = []
        while len(walked) < longest and (step := self._draw(key, texts)):
            walked.append(step)
            key = step[1]
            texts.add(self._texts[key])
        return walked

    def _draw(self, key: Key, texts: set[str]) -> Step | None:
        """A relation among those that lead to a new text, then a synset among its own."""
        options: dict[str, list[Key]] = defaultdict(list)
        for name, target in self._steps.get(key, ()):
            if self._texts[target] not in texts:
                options[name].append(target)
        if not options:
            return None
        name = list(options)[self._rng.integers(len(options))]
        return name, options[name][self._rng.integers(len(options[name]))]


def _chain(
    synsets: Mapping[Key, Synset],
    texts: Mapping[Key, str],
    shares: Mapping[Key, float],
    leaf: Key,
    walk: list[Step],
) -> Chain:
    keys = [leaf, *(key for _, key in walk)]
    return Chain(
        tuple(texts[key] for key in keys),
        SOURCE,
        codes(synsets[leaf].lexname, leaf[0], synsets[leaf].frames),
        tuple(name for name, _ in walk),
        tuple(shares[a] * shares[b] for a, b in pairwise(keys)),
    )
