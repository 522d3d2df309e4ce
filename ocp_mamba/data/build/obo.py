"""Ontologies in OBO format, read by obonet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ocp_mamba.data.build.ontology import Edge, Ontology, Term, finding
from ocp_mamba.errors import DatasetError, first_line

_QUOTED = re.compile(r'\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPES = {"n": " ", "W": " ", "t": " "}


def read_obo(path: Path) -> Ontology:
    """Read an OBO file; nothing that it imports is fetched.

    Terms are stanzas ``[Term]``. Edges are ``is_a`` and every type of ``relationship``.

    Raises:
        DatasetError: obonet is missing, or the file cannot be read or holds no term.
    """
    try:
        import obonet
    except ImportError as error:
        raise DatasetError(
            "reading an OBO file needs obonet: pip install 'ocp-mamba[ontology]'"
        ) from error
    try:
        with path.open(encoding="utf-8-sig") as file:
            graph = obonet.read_obo(file, ignore_obsolete=False)
    except OSError as error:
        raise DatasetError(f"OBO file {path}: cannot be read ({first_line(error)})") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"OBO file {path}: is no UTF-8 text (at byte {error.start}); unpack a compressed file"
        ) from error
    except Exception as error:  # of obonet's parser: any kind
        raise DatasetError(
            f"OBO file {path}: not in OBO format ({_one_line(error)}); stanzas [Term] with the "
            "tags id, name and is_a are wanted"
        ) from error
    return _ontology(path, graph)


def _ontology(path: Path, graph: Any) -> Ontology:
    declared = {i: tags for i, tags in graph.nodes(data=True) if tags}
    if not declared:
        raise DatasetError(f"OBO file {path}: holds no stanza [Term] with a name")
    header = graph.graph
    imports = header.get("import", [])
    edges: list[Edge] = [(child, kind, parent) for child, parent, kind in graph.edges(keys=True)]
    return Ontology(
        name=_unescaped(header.get("ontology") or path.stem).removesuffix(".obo"),
        version=header.get("data-version", ""),
        licence=_licence(header.get("property_value", [])),
        terms={i: _term(tags) for i, tags in declared.items()},
        edges=tuple(edges),
        alternatives={other: i for i, tags in declared.items() for other in tags.get("alt_id", [])},
        relation_names={
            kind["id"]: _unescaped(kind["name"])
            for kind in header.get("typedefs", [])
            if kind.get("id") and kind.get("name")
        },
        findings=(finding("imports of other files", imports, "not followed"),),
    )


def _term(tags: dict[str, Any]) -> Term:
    return Term(
        name=_unescaped(tags.get("name", "")),
        definition=_definition(tags.get("def", "")),
        obsolete=tags.get("is_obsolete") == "true",
    )


def _definition(value: str) -> str:
    """The quoted text of a ``def`` tag, whose references follow it."""
    found = _QUOTED.match(value)
    return _unescaped(found.group(1)) if found else ""


def _licence(values: list[str]) -> str:
    """The value of the header's licence property, such as ``dcterms:license``."""
    found = [value.split(maxsplit=1)[1] for value in values if "license" in value.split(" ")[0]]
    return found[0].split(" xsd:")[0].strip('"') if found else ""


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found.group(1), found.group(1)), value)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
