"""Chains out of a WordNet folder: the hypernym paths of leaves, from the leaf up to its root.

The folder is read by a small parser of ``data.noun`` and ``data.verb`` (the format is wndb(5WN)).
NLTK's reader cannot open every WordNet folder: it asks for a file ``lexnames``, which the database
itself does not need and Debian's package leaves out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ocp_mamba.config import MIN_CONTEXT
from ocp_mamba.data.build.chains import Chain, CleanReport, clean_chains, clean_text
from ocp_mamba.data.build.tmd import LEXICOGRAPHER_FILES, codes
from ocp_mamba.errors import DatasetError

SOURCE = "wordnet"
LICENCE = "WordNet 3.0, Copyright 2006 by Princeton University (see NOTICE)"

WHOLE = "0000"
"""Source and target of a pointer between synsets, not between words of theirs."""

Key = tuple[str, int]
"""Part of speech and byte offset: WordNet's own identity of a synset."""


@dataclass(frozen=True)
class Synset:
    """One line of a data file.

    Attributes:
        words: its words, with spaces, and the number that tells each from its namesakes in the same
            lexicographer file.
        lexname: its lexicographer file.
        pointers: symbol and target of what leads from it as a whole, in the file's order; pointers
            between single words are left out.
        frames: numbers of its generic sentence frames (verbs).
    """

    words: tuple[tuple[str, int], ...]
    lexname: str
    pointers: tuple[tuple[str, Key], ...]
    frames: tuple[int, ...]

    @property
    def lemma(self) -> str:
        """Its first word."""
        return self.words[0][0]

    @property
    def hypernym(self) -> Key | None:
        """Its first hypernym, None for a root or an instance."""
        return next((target for symbol, target in self.pointers if symbol == "@"), None)

    @property
    def has_hyponyms(self) -> bool:
        """Whether it has hyponyms."""
        return any(symbol == "~" for symbol, _ in self.pointers)


def read_wordnet(folder: str | Path) -> dict[Key, Synset]:
    """All nouns and verbs of a WordNet folder.

    Raises:
        DatasetError: a file is missing, unreadable or not in WordNet's format; names the line.
    """
    synsets: dict[Key, Synset] = {}
    for part_of_speech, name in (("n", "data.noun"), ("v", "data.verb")):
        path = Path(folder) / name
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.startswith("  "):  # the licence at the top
                        continue
                    offset, synset = _parse_line(line, part_of_speech, f"{path}:{number}")
                    synsets[part_of_speech, offset] = synset
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{path} cannot be read: {error}; a WordNet folder holds data.noun and data.verb"
            ) from error
    if not synsets:
        raise DatasetError(f"{folder}: data.noun and data.verb hold no synsets")
    return synsets


def wordnet_chains(
    folder: str | Path, *, sequences: int, siblings: int, seed: int
) -> tuple[list[Chain], CleanReport]:
    """Chains of leaves drawn from a WordNet folder, from leaf to root, 3 to 15 concepts each.

    A leaf is a noun or verb synset that has a hypernym and no hyponym. Instances (`Einstein`) are
    left out: they are not kinds of anything. A synset with several hypernyms follows the first,
    so each leaf gives one path; a concept's text is its synset's first word. TMD codes are the
    leaf's.

    Args:
        folder: holds ``data.noun`` and ``data.verb``.
        sequences: chains are drawn until they give this number of OCP sequences.
        siblings: as `draw_chains`.
        seed: as `draw_chains`.

    Returns:
        The chains drawn, and the report on all chains that they were drawn from.

    Raises:
        DatasetError: as `read_wordnet` and `draw_chains`.
    """
    synsets = read_wordnet(folder)
    leaves = sorted(k for k, s in synsets.items() if s.hypernym and not s.has_hyponyms)
    chains, report = clean_chains(
        (
            Chain(
                tuple(_path(synsets, leaf)),
                SOURCE,
                codes(synsets[leaf].lexname, leaf[0], synsets[leaf].frames),
            )
            for leaf in leaves
        ),
        cut=False,
    )
    return draw_chains(chains, sequences=sequences, siblings=siblings, seed=seed), report


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


def _path(synsets: dict[Key, Synset], leaf: Key) -> Iterator[str]:
    """Texts from a leaf to its root; a cycle ends before it repeats a synset."""
    key: Key | None = leaf
    seen = set()
    while key is not None and key not in seen:
        seen.add(key)
        if key not in synsets:
            raise DatasetError(f"synset {key[0]} {key[1]:08d} is pointed to but does not exist")
        yield synsets[key].lemma
        key = synsets[key].hypernym


def _parse_line(line: str, part_of_speech: str, place: str) -> tuple[int, Synset]:
    """Offset and synset of a data line.

    ``offset lex_filenum ss_type w_cnt word lex_id … p_cnt pointer … [f_cnt frame …] | gloss``;
    w_cnt is hexadecimal, the other counts are decimal.
    """
    fields = iter(line.split("|")[0].split())
    try:
        offset, lexname = int(next(fields)), LEXICOGRAPHER_FILES[int(next(fields))]
        next(fields)
        words = [
            (clean_text(next(fields)), int(next(fields), 16)) for _ in range(int(next(fields), 16))
        ]
        pointers = [
            (next(fields), int(next(fields)), next(fields), next(fields))
            for _ in range(int(next(fields)))
        ]
        frames = []
        if part_of_speech == "v":
            for _ in range(int(next(fields))):
                _, frame, _ = next(fields), int(next(fields)), next(fields)
                frames.append(frame)
        if not words:
            raise ValueError("no word")
    except (StopIteration, RuntimeError, ValueError, IndexError) as error:
        raise DatasetError(f"{place}: is no synset in WordNet's format: {line[:60]!r}") from error
    return offset, Synset(
        words=tuple(words),
        lexname=lexname,
        pointers=tuple((symbol, (pos, to)) for symbol, to, pos, ends in pointers if ends == WHOLE),
        frames=tuple(frames),
    )
