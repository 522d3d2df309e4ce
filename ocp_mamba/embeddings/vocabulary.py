"""The texts of a bank: which row a text names, and which known texts are near to it."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from rapidfuzz import fuzz, process

from ocp_mamba.errors import RequestError

SHOWN = 5
"""Texts that a message lists at most."""
MAX_CHARACTERS = 1_000
"""Longest text that is looked up."""


class Vocabulary:
    """Finds the bank row of a text: first the text as it stands, then its `normalized` form."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index the texts of a bank, in the order of its rows."""
        self.texts = [str(text) for text in texts]
        self._rows: defaultdict[str, list[int]] = defaultdict(list)
        self._normalized: defaultdict[str, list[int]] = defaultdict(list)
        self._forms = [normalized(text) for text in self.texts]
        for row, (text, form) in enumerate(zip(self.texts, self._forms, strict=True)):
            self._rows[text].append(row)
            self._normalized[form].append(row)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    def row(self, text: str) -> int | None:
        """Return the bank row that a text names, or None for a text that is not known.

        Raises:
            RequestError: several rows fit the text equally well; the message lists their texts.
        """
        found = self._rows.get(text) or self._normalized.get(normalized(text)) or []
        if len(found) <= 1:
            return found[0] if found else None
        different = list(dict.fromkeys(self.texts[row] for row in found))
        if len(different) == 1:
            raise RequestError(
                f"{quoted(text)} is ambiguous: the bank holds this text {len(found)} times; "
                "ask by vectors instead"
            )
        raise RequestError(
            f"{quoted(text)} is ambiguous: it may be {listing(different)}; write the one that is "
            "meant exactly so"
        )

    def nearest(self, text: str, limit: int = 3) -> list[str]:
        """Return the known texts that are spelt most like a text, the most similar first."""
        query = normalized(text[:MAX_CHARACTERS])
        found = process.extract(query, self._forms, scorer=fuzz.ratio, limit=limit)
        return [self.texts[row] for _, _, row in found]

    def search(self, query: str, limit: int = 10) -> list[str]:
        """Return known texts for a lookup as a person types it, the best first.

        First come those that begin with the query, then those that have it inside, the shorter
        ones first; then those that are spelt like it.
        """
        form = normalized(query[:MAX_CHARACTERS])
        inside = [row for row, known in enumerate(self._forms) if form in known] if form else []
        inside.sort(key=lambda r: (not self._forms[r].startswith(form), len(self._forms[r]), r))
        found = [self.texts[row] for row in inside[:limit]]
        if form and len(found) < limit:
            found += [text for text in self.nearest(query, limit) if text not in found]
        return found[:limit]


def normalized(text: str) -> str:
    """Return the form in which texts are compared where none is equal as it stands.

    Unicode compatibility forms become one (NFKC), case is ignored, and an underscore or a run of
    white space becomes one space.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("_", " ").split())


def quoted(text: str, longest: int = 60) -> str:
    """Return a text in quotes for a message, cut where it is long."""
    return repr(text if len(text) <= longest else text[: longest - 1] + "…")


def listing(texts: list[str]) -> str:
    """Return up to five texts in quotes, with commas between them."""
    return ", ".join(map(quoted, texts[:SHOWN])) + (", …" if len(texts) > SHOWN else "")
