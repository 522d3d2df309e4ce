"""Knowledge graphs in two tables: triples ``head relation tail``, and the texts of the ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ocp_mamba.data.build.chains import clean_text
from ocp_mamba.data.build.ontology import Edge, Ontology, Term, finding
from ocp_mamba.errors import DatasetError, first_line, shown

BETWEEN = ", "
"""What separates a name from its definition in a file of texts."""


def read_triples(triples: Sequence[Path], texts: Path) -> Ontology:
    """Read triples and the texts of their ids, each a line with tabs between its fields.

    A triple is ``head <tab> relation <tab> tail``; its head is the narrower of the two. A text is
    ``id <tab> name, definition``; what stands before the first comma and space is the name. Blank
    lines are skipped, and the first text of an id counts.

    Args:
        triples: one or more files.
        texts: the file of texts.

    Raises:
        DatasetError: a file cannot be read, or a line has another number of fields; names the line.
    """
    edges: list[Edge] = []
    for path in triples:
        for place, fields in _rows(path, 3, "triple file", "head, relation and tail"):
            head, relation, tail = fields
            if not all(fields):
                raise DatasetError(f"{place}: {shown(fields)} found, one of the three is empty")
            edges.append((head, relation, tail))
    terms: dict[str, Term] = {}
    again, empty = [], []
    for _, (i, text) in _rows(texts, 2, "text file", "id and text"):
        name, _, definition = clean_text(text).partition(BETWEEN)
        if i in terms:
            again.append(i)
        elif not name:
            empty.append(i)
        else:
            terms[i] = Term(name, definition)
    for what, found, files in (("triple", edges, triples), ("text", terms, [texts])):
        if not found:
            raise DatasetError(f"{what} file {', '.join(map(str, files))}: holds no {what}s")
    twice = len(edges) - len(set(edges))
    ends = {i for head, _, tail in edges for i in (head, tail)}
    return Ontology(
        name=texts.stem,
        terms=terms,
        edges=tuple(dict.fromkeys(edges)),
        findings=(
            finding(
                "ids without a text", sorted(ends - terms.keys()), "left out, with their edges"
            ),
            finding("empty texts", empty, "their ids have no text"),
            finding("further texts of an id", again, "the first one counts"),
            finding("triples that are there twice", (), "count once", twice),
        ),
    )


def _rows(path: Path, fields: int, kind: str, wanted: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the fields of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{kind} {path}, line {number}"
                row = [field.strip() for field in line.rstrip("\n").split("\t", fields - 1)]
                if len(row) != fields or "\t" in row[-1]:
                    raise DatasetError(
                        f"{place}: {line.count(chr(9)) + 1} fields found, {fields} wanted "
                        f"({wanted}, with a tab between them)"
                    )
                yield place, row
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{kind} {path}: cannot be read ({first_line(error)})") from error
