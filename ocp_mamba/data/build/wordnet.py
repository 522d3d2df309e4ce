"""Chains out of a WordNet folder: the hypernym paths of leaves, from the leaf up to its root.

The folder is read by a small parser of ``data.noun`` and ``data.verb`` (the format is wndb(5WN)).
NLTK's reader cannot open every WordNet folder: it asks for a file ``lexnames``, which the database
itself does not need and Debian's package leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ocp_mamba.data.build.chains import (
    NAME,
    Chain,
    CleanReport,
    clean_chains,
    clean_text,
    draw_chains,
    with_definition,
)
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
        definition: its gloss without the examples of use.
    """

    words: tuple[tuple[str, int], ...]
    lexname: str
    pointers: tuple[tuple[str, Key], ...]
    frames: tuple[int, ...]
    definition: str = ""

    @property
    def lemma(self) -> str:
        """Its first word."""
        return self.words[0][0]

    def text(self, form: str) -> str:
        """What is encoded for it, by a name out of `TEXT_FORMS`."""
        return self.lemma if form == NAME else with_definition(self.lemma, self.definition)

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
    folder: str | Path, *, sequences: int, siblings: int, seed: int, text: str = NAME
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
        text: what is encoded for a concept, one of `TEXT_FORMS`.

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
                tuple(synsets[key].text(text) for key in _path(synsets, leaf)),
                SOURCE,
                codes(synsets[leaf].lexname, leaf[0], synsets[leaf].frames),
            )
            for leaf in leaves
        ),
        cut=False,
    )
    return draw_chains(chains, sequences=sequences, siblings=siblings, seed=seed), report


def _path(synsets: dict[Key, Synset], leaf: Key) -> Iterator[Key]:
    """Synsets from a leaf to its root; a cycle ends before it repeats one."""
    key: Key | None = leaf
    seen = set()
    while key is not None and key not in seen:
        seen.add(key)
        if key not in synsets:
            raise DatasetError(f"synset {key[0]} {key[1]:08d} is pointed to but does not exist")
        yield key
        key = synsets[key].hypernym


def _parse_line(line: str, part_of_speech: str, place: str) -> tuple[int, Synset]:
    """Offset and synset of a data line.

    ``offset lex_filenum ss_type w_cnt word lex_id … p_cnt pointer … [f_cnt frame …] | gloss``;
    w_cnt is hexadecimal, the other counts are decimal.
    """
    data, _, gloss = line.partition("|")
    fields = iter(data.split())
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
        definition=clean_text(gloss.split('; "')[0]),
    )
