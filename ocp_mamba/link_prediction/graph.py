"""A knowledge graph with texts, read from a folder of tab-separated files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ocp_mamba.errors import DatasetError, first_line, shown

TEXTS = "entity2text.txt"
SPLITS = ("train", "dev", "test")
HYPERNYM = "_hypernym"
"""The relation whose tail is the parent of its head."""

LONGEST_TEXT = 1 << 16


@dataclass(frozen=True)
class KnowledgeGraph:
    """Entities with texts, and triples (head, relation, tail) in three splits.

    Attributes:
        ids: of the E entities, as the files have them.
        texts: of each entity, "name, definition".
        relations: names of the relations, in alphabetical order.
        triples: for each split int64 ``(n, 3)``: numbers of head, relation and tail.
        digest: SHA-256 of the four files.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    relations: Sequence[str]
    triples: dict[str, np.ndarray]
    digest: str

    @property
    def n_entities(self) -> int:
        """Number of entities."""
        return len(self.ids)

    @property
    def names(self) -> list[str]:
        """The part of each text before the first comma."""
        return [text.split(", ", 1)[0] for text in self.texts]

    def pairs(self, split: str, relation: str = HYPERNYM) -> np.ndarray:
        """Return the heads and tails of a relation's triples in a split, int64 ``(n, 2)``."""
        found = self.triples[split]
        return found[found[:, 1] == self.relations.index(relation)][:, [0, 2]]


def read_graph(folder: Path | str) -> KnowledgeGraph:
    """Read ``entity2text.txt``, ``train.tsv``, ``dev.tsv`` and ``test.tsv`` of a folder.

    Each line of the first file is ``id<TAB>name, definition``; each line of the others is
    ``head<TAB>relation<TAB>tail``, with ids of the first file.

    Raises:
        DatasetError: a file is missing, empty or no UTF-8, a line is not of that form, an id or a
            triple occurs twice, a triple is in two splits, or a split has no `HYPERNYM` triple.
    """
    folder = Path(folder)
    paths = [folder / TEXTS, *(folder / f"{split}.tsv" for split in SPLITS)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"folder {folder}: lacks {', '.join(missing)}; WN18RR's files are wanted: {TEXTS} "
            "(id<TAB>name, definition) and train.tsv, dev.tsv, test.tsv "
            "(head<TAB>relation<TAB>tail)"
        )
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    texts: dict[str, str] = {}
    for place, (entity, text) in _rows(paths[0], 2):
        if entity in texts:
            raise DatasetError(f"{place}: the id {shown(entity)} occurs twice")
        texts[entity] = text
    number = {entity: row for row, entity in enumerate(texts)}
    named = _read_splits(paths[1:], number)
    relations = sorted({relation for rows in named.values() for _, relation, _ in rows})
    index = {relation: row for row, relation in enumerate(relations)}
    triples = {
        split: np.array([(number[h], index[r], number[t]) for h, r, t in rows], dtype=np.int64)
        for split, rows in named.items()
    }
    return KnowledgeGraph(list(texts), list(texts.values()), relations, triples, digest.hexdigest())


def _read_splits(
    paths: Sequence[Path], number: dict[str, int]
) -> dict[str, list[tuple[str, str, str]]]:
    """The triples of each split, in names; each occurs once in all."""
    first_place: dict[tuple[str, str, str], str] = {}
    named: dict[str, list[tuple[str, str, str]]] = {}
    for path in paths:
        rows = named.setdefault(path.stem, [])
        for place, (head, relation, tail) in _rows(path, 3):
            for entity in (head, tail):
                if entity not in number:
                    raise DatasetError(
                        f"{place}: the id {shown(entity)} is not in {path.with_name(TEXTS)}"
                    )
            triple = (head, relation, tail)
            if triple in first_place:
                raise DatasetError(f"{place}: the same triple as {first_place[triple]}")
            first_place[triple] = place
            rows.append(triple)
        if not any(relation == HYPERNYM for _, relation, _ in rows):
            raise DatasetError(f"{path}: has no triple of the relation {HYPERNYM}")
    return named


def _rows(path: Path, width: int) -> Iterator[tuple[str, list[str]]]:
    """The place and the cells of each line; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text ({first_line(error)})") from error
    found = False
    for line_number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        found = True
        place, cells = f"{path}, line {line_number}", line.split("\t")
        if len(cells) != width or not all(cell.strip() for cell in cells):
            raise DatasetError(
                f"{place}: {len(cells)} cells found, {width} with a tab between wanted, none empty:"
                f" {shown(line)}"
            )
        if len(line) > LONGEST_TEXT:
            raise DatasetError(f"{place}: longer than {LONGEST_TEXT:,} characters")
        yield place, cells
    if not found:
        raise DatasetError(f"{path}: is empty")
