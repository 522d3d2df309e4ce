from __future__ import annotations

import pytest

from ocp_mamba.embeddings.vocabulary import Vocabulary
from ocp_mamba.errors import RequestError

WORDS = Vocabulary(["sand tiger", "shark", "Earth", "earth", "ﬁsh", "gastropod", "twin", "twin"])


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("shark", 1),
        ("Shark", 1),
        ("  sand\t TIGER ", 0),
        ("sand_tiger", 0),
        ("Earth", 2),
        ("earth", 3),
        ("fish", 4),
        ("sharks", None),
        ("", None),
    ],
)
def test_a_text_is_found_as_it_stands_or_by_its_normalized_form(text: str, row: int | None) -> None:
    assert WORDS.row(text) == row


def test_an_ambiguous_text_is_refused_with_what_it_may_be() -> None:
    with pytest.raises(RequestError, match="'EARTH' is ambiguous: it may be 'Earth', 'earth'"):
        WORDS.row("EARTH")
    with pytest.raises(RequestError, match="'twin' is ambiguous: the bank holds this text 2 times"):
        WORDS.row("twin")


def test_the_nearest_texts_are_those_spelt_alike() -> None:
    assert WORDS.nearest("gastropood", 1) == ["gastropod"]
    assert WORDS.nearest("SHRAK", 1) == ["shark"]
    assert len(WORDS.nearest("x" * 10**6)) == 3
    assert len(WORDS.nearest("\ud800")) == 3


def test_a_lookup_gives_beginnings_first_then_what_has_it_inside_then_similar_ones() -> None:
    found = Vocabulary(["tiger", "sand tiger", "tiger shark", "tigger", "tree"]).search("Tiger", 4)
    assert found == ["tiger", "tiger shark", "sand tiger", "tigger"]
    assert WORDS.search("shark", 1) == ["shark"]
    assert WORDS.search("  ") == []
