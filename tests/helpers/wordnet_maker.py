"""A WordNet of a dozen synsets, as its files have them."""

from __future__ import annotations

from pathlib import Path

LICENCE_LINES = "  1 This software and database is being provided to you\n  2 and so on  \n"


def line(offset, lexfile, pos, words, pointers, frames=None) -> str:
    parts = [f"{offset:08d} {lexfile:02d} {pos} {len(words):02x}"]
    parts += [f"{word} 0" for word in words]
    parts.append(f"{len(pointers):03d}")
    parts += [f"{symbol} {target:08d} {p} 0000" for symbol, target, p in pointers]
    if frames is not None:
        parts.append(f"{len(frames):02d}")
        parts += [f"+ {frame:02d} 00" for frame in frames]
    return " ".join(parts) + " | a gloss; with | a bar and @ 1 n 0000\n"


NOUNS = [
    line(1, 3, "n", ["entity"], [("~", 2, "n")]),
    line(2, 5, "n", ["living_thing", "animate_thing"], [("@", 1, "n"), ("~", 3, "n")]),
    line(3, 5, "n", [f"w{i}" for i in range(17)], [("@", 2, "n"), ("~", 4, "n"), ("~i", 9, "n")]),
    line(4, 5, "n", ["sea_snail"], [("#m", 1, "n"), ("@", 3, "n"), ("@", 1, "n")]),
    line(5, 20, "n", ["moss"], [("@", 3, "n")]),
    line(6, 20, "n", ["lone_root"], []),
    line(7, 20, "n", ["too_short"], [("@", 1, "n")]),
    line(8, 20, "n", ["w0"], [("@", 3, "n")]),  # the text of its own hypernym
    line(9, 18, "n", ["Einstein"], [("@i", 3, "n")]),
]
VERBS = [
    line(1, 38, "v", ["move"], [("~", 2, "v")], [1]),
    line(2, 38, "v", ["travel"], [("@", 1, "v"), ("~", 3, "v")], [2]),
    line(3, 38, "v", ["walk"], [("@", 2, "v")], [2, 8]),
]


RELATION_NOUNS = [
    line(1, 3, "n", ["entity"], [("~", 2, "n")]),
    line(2, 8, "n", ["body"], [("@", 1, "n"), ("%p", 3, "n")]),
    line(3, 8, "n", ["hand"], [("#p", 2, "n"), ("~", 4, "n")]),
    line(4, 8, "n", ["finger"], [("#p", 3, "n"), ("~", 5, "n")]),
    line(5, 8, "n", ["thumb"], [("@", 4, "n")]),
    line(6, 8, "n", ["pinkie", "little_finger"], [("@", 4, "n"), ("!", 5, "n")]),
    line(7, 8, "n", ["nail"], [("#p", 4, "n")]),
    line(8, 18, "n", ["Hand"], [("@", 1, "n")]),  # another meaning of one word
    line(9, 18, "n", ["hand_axe"], []),
]
RELATION_VERBS = [
    line(1, 38, "v", ["move"], [], [1]),
    line(2, 38, "v", ["hand"], [("@", 1, "v"), (";c", 2, "n")], [8]),
    line(3, 38, "v", ["pass_on"], [("*", 2, "v")], [8]),
]
COUNTS = ["hand%1:08:00:: 1 7", "hand%1:18:00:: 2 1", "finger%1:08:00:: 1 3", "red%3:00:01:: 1 9"]


def write_relations(
    folder: Path, nouns=RELATION_NOUNS, verbs=RELATION_VERBS, counts=COUNTS
) -> Path:
    for name, lines in (("data.noun", nouns), ("data.verb", verbs)):
        (folder / name).write_text(LICENCE_LINES + "".join(lines), encoding="utf-8")
    (folder / "cntlist.rev").write_text("".join(f"{count}\n" for count in counts))
    return folder
