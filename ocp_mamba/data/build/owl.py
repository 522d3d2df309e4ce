"""Ontologies in OWL, written as RDF/XML, read by rdflib."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ocp_mamba.data.build.ontology import IS_A, Edge, Finding, Ontology, Term, finding
from ocp_mamba.errors import DatasetError, first_line

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RDFS = "http://www.w3.org/2000/01/rdf-schema#"
OWL = "http://www.w3.org/2002/07/owl#"
SKOS = "http://www.w3.org/2004/02/skos/core#"
OBO_IN_OWL = "http://www.geneontology.org/formats/oboInOwl#"

LABELS = (f"{RDFS}label", f"{SKOS}prefLabel")
DEFINITIONS = (
    "http://purl.obolibrary.org/obo/IAO_0000115",
    f"{SKOS}definition",
    f"{RDFS}comment",
)
"""Properties of a label and of a definition; the first that a class has counts."""

LICENCES = tuple(
    f"{terms}{name}" for terms in ("http://purl.org/dc/terms/", "http://purl.org/dc/elements/1.1/")
    for name in ("license", "rights")
)  # fmt: skip
LANGUAGES = ("en", None)
"""A text in one of these languages comes before others; None is a text that names no language."""

WANTED = (
    "OWL as RDF/XML is wanted (root element rdf:RDF). Protégé saves it as that; so does "
    "`robot convert --input FILE --output new.owl`"
)
FIRST_BYTES = 1 << 16


def read_owl(path: Path) -> Ontology:
    """Read an OWL ontology out of RDF/XML; nothing that it imports is fetched.

    Terms are the named classes. Their edges are ``subClassOf`` a named class, and a named class in
    the intersection that they are equivalent to (both `IS_A`), and ``subClassOf`` a restriction
    "some values from a named class", by the name of its property. Other class expressions are
    counted and left out.

    Raises:
        DatasetError: rdflib is missing, the file is no RDF/XML, or it holds no named class.
    """
    try:
        from rdflib import Graph
    except ImportError as error:
        raise DatasetError(
            "reading an OWL file needs rdflib: pip install 'ocp-mamba[ontology]'"
        ) from error
    _require_rdf_xml(path)
    graph = Graph(bind_namespaces="none")
    try:
        with path.open("rb") as file:
            graph.parse(file=file, format="xml")
    except Exception as error:  # of rdflib and of expat: any kind
        raise DatasetError(f"OWL file {path}: cannot be read ({first_line(error)})") from error
    return _Reader(graph).ontology(path)


def _require_rdf_xml(path: Path) -> None:
    """Refuse what is no RDF/XML by its root element, before all of it is read."""
    root: list[str] = []
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = lambda name, _: root.append(name)
    try:
        with path.open("rb") as file:
            while not root and (part := file.read(FIRST_BYTES)):
                parser.Parse(part)
    except OSError as error:
        raise DatasetError(f"OWL file {path}: cannot be read ({first_line(error)})") from error
    except expat.ExpatError as error:
        if not root:
            raise DatasetError(f"OWL file {path}: is no XML ({error}); {WANTED}") from error
    if root[:1] != [f"{RDF} RDF"]:
        found = root[0].split(" ")[-1] if root else "nothing"
        raise DatasetError(f"OWL file {path}: root element {found} found; {WANTED}")


class _Reader:
    """Reads one graph of triples."""

    def __init__(self, graph: Any) -> None:
        from rdflib import BNode, URIRef

        self._graph, self._uri, self._blank = graph, URIRef, BNode
        self._left_out: list[str] = []

    def ontology(self, path: Path) -> Ontology:
        """Everything that is kept of the graph."""
        classes = self._classes()
        if not classes:
            raise DatasetError(
                f"OWL file {path}: holds no named class (owl:Class with rdf:about), so there is "
                "nothing to make chains of"
            )
        edges = [edge for term in classes for edge in self._edges(term)]
        head = next(iter(self._subjects("type", f"{OWL}Ontology", RDF)), None)
        licences = self._texts(head, LICENCES) if head is not None else []
        version = self._value(head, f"{OWL}versionIRI") or self._value(head, f"{OWL}versionInfo")
        return Ontology(
            name=_local_name(str(head)).removesuffix(".owl") if _named(head) else path.stem,
            version=version,
            licence=licences[0] if licences else "",
            terms={self._id(term): self._term(term) for term in classes},
            edges=tuple(dict.fromkeys(edges)),
            alternatives=self._alternatives(classes),
            findings=tuple(self._findings(classes, head)),
        )

    def _classes(self) -> list[Any]:
        """The named classes, in the order of their IRIs."""
        subjects = {
            subject for kind in (f"{OWL}Class", f"{RDFS}Class")
            for subject in self._subjects("type", kind, RDF)
        } | set(self._graph.subjects(self._uri(f"{RDFS}subClassOf"), None))  # fmt: skip
        return sorted(s for s in subjects if not isinstance(s, self._blank))

    def _term(self, term: Any) -> Term:
        labels, definitions = self._texts(term, LABELS), self._texts(term, DEFINITIONS)
        return Term(
            name=labels[0] if labels else "",
            definition=definitions[0] if definitions else "",
            obsolete=self._value(term, f"{OWL}deprecated").lower() in ("true", "1"),
        )

    def _edges(self, term: Any) -> Iterator[Edge]:
        child = self._id(term)
        for parent in self._objects(term, f"{RDFS}subClassOf"):
            if not isinstance(parent, self._blank):
                if str(parent) != f"{OWL}Thing":
                    yield child, IS_A, self._id(parent)
            elif found := self._restriction(parent):
                yield child, *found
            else:
                self._left_out.append(self._shown(term))
        for same in self._objects(term, f"{OWL}equivalentClass"):
            members = self._value_of(same, f"{OWL}intersectionOf")
            if members is None:
                self._left_out.append(self._shown(term))
                continue
            for member in self._graph.items(members):
                if not isinstance(member, self._blank):
                    yield child, IS_A, self._id(member)
                elif found := self._restriction(member):
                    yield child, *found
                else:
                    self._left_out.append(self._shown(term))

    def _restriction(self, node: Any) -> tuple[str, str] | None:
        """The property and the class of "some values from"; None for any other expression."""
        prop = self._value_of(node, f"{OWL}onProperty")
        target = self._value_of(node, f"{OWL}someValuesFrom")
        if prop is None or target is None or isinstance(prop, self._blank):
            return None
        if isinstance(target, self._blank) or not isinstance(target, self._uri):
            return None
        labels = self._texts(prop, LABELS)
        name = labels[0] if labels else _local_name(str(prop))
        return name.replace(" ", "_").replace(",", ""), self._id(target)

    def _alternatives(self, classes: list[Any]) -> dict[str, str]:
        found = {}
        for term in classes:
            for other in self._objects(term, f"{OBO_IN_OWL}hasAlternativeId"):
                found[self._id(other)] = self._id(term)
        return found

    def _findings(self, classes: list[Any], head: Any) -> Iterator[Finding]:
        imports = list(self._objects(head, f"{OWL}imports")) if head is not None else []
        labels = {
            term: values for term in classes if len(values := self._texts(term, LABELS[:1])) > 1
        }
        yield finding("imports of other files", map(str, imports), "not followed")
        yield finding(
            "class expressions without a plain edge",
            self._left_out,
            "left out (unions, complements, cardinalities, values from expressions)",
        )
        yield finding(
            "classes with several labels",
            (" / ".join(values) for values in labels.values()),
            "an English one counts, then one without a language, then the first",
        )

    def _texts(self, subject: Any, properties: tuple[str, ...]) -> list[str]:
        """The values of the first property that has any, the best language first."""
        for name in properties:
            values = [v for v in self._objects(subject, name) if str(v).strip()]
            if values:
                return [str(v) for v in sorted(values, key=lambda v: (_rank(v), str(v)))]
        return []

    def _id(self, term: Any) -> str:
        """``GO:0000001`` for such an IRI of the OBO library; any other IRI as it is."""
        found = re.fullmatch(r"http://purl\.obolibrary\.org/obo/([A-Za-z]+)_(\w+)", str(term))
        return ":".join(found.groups()) if found else str(term)

    def _shown(self, term: Any) -> str:
        labels = self._texts(term, LABELS)
        return labels[0] if labels else str(term)

    def _objects(self, subject: Any, name: str) -> list[Any]:
        return sorted(self._graph.objects(subject, self._uri(name)))

    def _subjects(self, name: str, value: str, base: str) -> Any:
        return self._graph.subjects(self._uri(base + name), self._uri(value))

    def _value_of(self, subject: Any, name: str) -> Any:
        return next(iter(self._graph.objects(subject, self._uri(name))), None)

    def _value(self, subject: Any, name: str) -> str:
        found = self._value_of(subject, name) if subject is not None else None
        return "" if found is None else str(found)


def _rank(literal: Any) -> int:
    language = getattr(literal, "language", None)
    base = language.split("-")[0].lower() if language else None
    return LANGUAGES.index(base) if base in LANGUAGES else len(LANGUAGES)


def _named(head: Any) -> bool:
    return head is not None and ":" in str(head)


def _local_name(iri: str) -> str:
    return re.split(r"[#/]", iri.rstrip("#/"))[-1]
