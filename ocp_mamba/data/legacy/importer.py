"""Import of older `.npz` files: repair what can be repaired, report it, refuse the rest.

Every row of an older file is one training example, and exactly these examples are what the
imported dataset trains on and is evaluated by. ``docs/import.md`` describes layouts and repairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ocp_mamba.config import D_TMD, __version__
from ocp_mamba.data.analysis.duplicates import find_duplicates, norms_of
from ocp_mamba.data.analysis.leakage import LEARN_ALL
from ocp_mamba.data.dataset import SCHEMA_VERSION, SPLITS, Dataset
from ocp_mamba.data.legacy.layouts import LegacyFile, RawSplit
from ocp_mamba.data.legacy.vectors import UNIT_TOLERANCE, VectorNumbers, split_fused
from ocp_mamba.data.split import split_chains, split_report
from ocp_mamba.errors import DatasetError

SOURCE = "imported"
"""Name of the one source of imported chains."""

ZERO_WINDOW_LIMIT = 0.1
"""Share of fixed windows with all-zero rows above which the zeros must be padding."""


@dataclass
class ImportReport:
    """What an import found and changed.

    Attributes:
        path: the older file.
        layout: the layout recognized, in words.
        read: per split of the file ("" for one without splits), examples read and dropped.
        imported: per split of the result, examples and chains.
        rows: context and target rows that were kept.
        concepts: bank rows that they became.
        notes: every repair, choice and thing left out, as sentences with numbers.
    """

    path: str
    layout: str
    read: dict[str, tuple[int, int]] = field(default_factory=dict)
    imported: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: int = 0
    concepts: int = 0
    notes: list[str] = field(default_factory=list)

    def to_markdown(self) -> str:
        """The report as Markdown: layout, notes, then what was read and what was imported."""
        read = [[s or "(no split)", n, dropped] for s, (n, dropped) in self.read.items()]
        imported = [[s, n, chains] for s, (n, chains) in self.imported.items()]
        parts = [
            f"{self.path}: {self.layout}",
            "\n".join(f"- {note}" for note in self.notes),
            _table(read, ["split in the file", "examples read", "dropped"]),
            _table(imported, ["split imported", "examples", "chains"]),
            f"{self.rows} context and target rows became {self.concepts} concepts.",
        ]
        return "\n\n".join(part for part in parts if part)


@dataclass
class _Examples:
    """Examples kept of one split: ids of their context rows and targets, and TMD codes."""

    contexts: np.ndarray  # int64 (R,), example after example
    lengths: np.ndarray  # int64 (n,)
    targets: np.ndarray  # int64 (n,)
    tmd: np.ndarray | None  # float32 (n, 16)


@dataclass
class _Chains:
    """Chains as lists; ``tmd`` has one row of codes each, or is None."""

    concepts: list[tuple[int, ...]]
    first: list[int]
    tmd: np.ndarray | None


def import_legacy(
    path: str | Path,
    *,
    allow_pickle: bool = False,
    seed: int = 0,
    fused: str | None = None,
    encoder_name: str | None = None,
) -> tuple[Dataset, ImportReport]:
    """Turn an older `.npz` into a dataset of exactly its examples.

    Args:
        path: the older file.
        allow_pickle: open object arrays, which can run any code that the file's author put in.
        seed: of the split of a file that has none.
        fused: for 784-D rows, whether the 768-D vector comes "first" or "last"; None finds out
            which end has unit norm.
        encoder_name: the encoder that made the vectors; None leaves it "unknown".

    Raises:
        DatasetError: the file is of no known layout, is damaged, or holds what cannot be repaired;
            names the key, what was found and what is wanted.
        ValueError: ``fused`` is none of the three.
    """
    if fused not in (None, "first", "last"):
        raise ValueError(f"fused must be 'first', 'last' or None, got {fused!r}")
    try:
        return _import(Path(path), allow_pickle, seed, fused, encoder_name or "unknown")
    except DatasetError as error:
        text = str(error)
        raise DatasetError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _import(
    path: Path, allow_pickle: bool, seed: int, fused: str | None, encoder_name: str
) -> tuple[Dataset, ImportReport]:
    file = LegacyFile(path, allow_pickle)
    keep_split = _has_split(file)
    report = ImportReport(str(path), f"{file.layout.title} ({', '.join(file.layout.stems)})")
    if file.pickled:
        report.notes.append(f"opened as pickles: {', '.join(file.pickled)}")
    examples, bank = _read_examples(file, fused, report)
    chains = {split: _chains_of(part) for split, part in examples.items()}
    if keep_split:
        split = np.repeat(
            [SPLITS.index(s) for s in chains], [len(c.first) for c in chains.values()]
        )
    else:
        split = None
    dataset = _assemble(list(chains.values()), bank, split, seed, encoder_name)
    if not keep_split:
        _note_split(report, dataset)
    _close(report, file, dataset)
    return dataset, report


def _has_split(file: LegacyFile) -> bool:
    """Whether the file is split; refuse a split that cannot be trained on and evaluated."""
    if file.splits in (("",), ("train",)):
        return False
    lacking = [split for split in ("train", "val") if split not in file.splits]
    if lacking:
        raise DatasetError(
            f"the splits {', '.join(file.splits)} found, train and val wanted (test may be "
            f"absent): the keys of {' and '.join(lacking)} are missing. Add them, or save all "
            "examples under keys without a split prefix, to have them split 70/15/15"
        )
    return True


def _read_examples(
    file: LegacyFile, fused: str | None, report: ImportReport
) -> tuple[dict[str, _Examples], np.ndarray]:
    """The kept examples of each split, and the bank that their ids point into."""
    vectors = VectorNumbers()
    norms, ends, examples = [], set(), {}
    for split in file.splits:
        raw = file.read(split)
        keys = [file.key(split, stem) for stem in file.layout.stems[:2]]
        ends.add(split_fused(raw, keys[0], keys[1], fused))
        row_norms, target_norms = norms_of(raw.rows), norms_of(raw.target)
        keep = _whole(file, raw, row_norms == 0, target_norms == 0)
        report.read[split] = (len(keep), int((~keep).sum()))
        report.notes += raw.notes
        norms += [row_norms, target_norms]
        keep_rows = np.repeat(keep, raw.lengths)
        examples[split] = _Examples(
            vectors.number(raw.rows[keep_rows]),
            raw.lengths[keep],
            vectors.number(raw.target[keep]),
            None if raw.tmd is None else raw.tmd[keep],
        )
        report.rows += int(keep_rows.sum() + keep.sum())
    if {"first", "last"} <= ends:
        raise DatasetError(
            "784-D rows: the vector comes first in one split and last in another, one order "
            "wanted. Save them again with the vector first"
        )
    if fused and fused not in ends:
        report.notes.append(f"fused={fused} was given, but no rows are 784-D: nothing to cut")
    _note_norms(np.concatenate(norms), report)
    _check_tmd(examples, report)
    return examples, _make_bank(vectors.rows(), examples, report)


def _whole(
    file: LegacyFile, raw: RawSplit, zero_rows: np.ndarray, zero_targets: np.ndarray
) -> np.ndarray:
    """Bool (n,): examples with a target, a context and no all-zero row in it."""
    context_key, target_key = (file.key(raw.name, stem) for stem in file.layout.stems[:2])
    n = len(raw.lengths)
    empty = raw.lengths == 0
    example = np.repeat(np.arange(n), raw.lengths)
    broken = np.bincount(example[zero_rows], minlength=n) > 0
    if file.layout.padding == "none" and broken.mean() > ZERO_WINDOW_LIMIT:
        raise DatasetError(
            f"key {context_key!r}: all-zero rows in {broken.sum()} of {n} windows found, full "
            "windows wanted. If the zeros are padding, rename the keys to [split_]context and "
            "[split_]target, or add [split_]masks to [split_]contexts and [split_]targets"
        )
    for key, bad, what in (
        (context_key, empty, "contexts without any row"),
        (context_key, broken, f"contexts with all-zero rows ({zero_rows.sum()} rows)"),
        (target_key, zero_targets, "all-zero targets"),
    ):
        if bad.any():
            first = np.flatnonzero(bad)[0]
            raw.notes.append(
                f"{key}: dropped {bad.sum()} examples for {what}, the first is example {first}"
            )
    keep = ~(empty | broken | zero_targets)
    if not keep.any():
        raise DatasetError(
            f"key {context_key!r}: no example is left of {n} once those with all-zero rows are "
            f"dropped, at least one wanted: {'; '.join(raw.notes)}"
        )
    return np.asarray(keep)


def _note_norms(norms: np.ndarray, report: ImportReport) -> None:
    norms = norms[norms > 0]
    off = int((np.abs(norms - 1) > UNIT_TOLERANCE).sum())
    if off:
        report.notes.append(
            f"{off} of {len(norms)} vectors were not of unit length (norms from {norms.min():.4g} "
            f"to {norms.max():.4g}): normalized"
        )


def _check_tmd(examples: dict[str, _Examples], report: ImportReport) -> None:
    """All splits have TMD codes or none has; say how many are zero."""
    codes = [part.tmd for part in examples.values() if part.tmd is not None]
    if not codes:
        return
    if len(codes) < len(examples):
        without = [split for split, part in examples.items() if part.tmd is None]
        raise DatasetError(
            "784-D contexts with TMD codes in some splits, 768-D contexts in "
            f"{', '.join(without)}; one width in all splits wanted"
        )
    zero = sum(int((~part.any(axis=1)).sum()) for part in codes)
    total = sum(len(part) for part in codes)
    report.notes.append(f"TMD codes (n, {D_TMD}) kept; {zero} of {total} examples have all zeros")


def _make_bank(
    rows: np.ndarray, examples: dict[str, _Examples], report: ImportReport
) -> np.ndarray:
    """One unit row per different vector, float32 (n_concepts, 768); renumbers the examples."""
    unit = (rows / norms_of(rows)[:, None]).astype(np.float32)
    root, largest = find_duplicates(unit)
    kept, concept = np.unique(root, return_inverse=True)
    for part in examples.values():
        part.contexts, part.targets = concept[part.contexts], concept[part.targets]
    report.concepts = len(kept)
    if len(kept) < len(unit):
        report.notes.append(
            f"{len(unit) - len(kept)} vectors equal another one but for scale and rounding (once "
            f"normalized, {largest:.1e} apart at most) and became one concept with it"
        )
    return np.asarray(unit[kept])


def _chains_of(part: _Examples) -> _Chains:
    """Chains whose targets are exactly the examples.

    An example whose context is another example, target included, with the same TMD codes,
    continues that example's chain; each chain is continued once. So chain c predicts
    ``concepts[first:]``, and each of these is one example of the file.
    """
    ends = np.cumsum(part.lengths)
    concepts: list[tuple[int, ...]] = []
    first: list[int] = []
    origin: list[int] = []
    open_chains: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
    for i in np.argsort(part.lengths, kind="stable").tolist():
        context = tuple(part.contexts[ends[i] - part.lengths[i] : ends[i]].tolist())
        code = b"" if part.tmd is None else part.tmd[i].tobytes()
        chain = (*context, int(part.targets[i]))
        waiting = open_chains.get((context, code))
        if waiting:
            number = waiting.pop()
            concepts[number] = chain
        else:
            number = len(concepts)
            concepts.append(chain)
            first.append(len(context))
            origin.append(i)
        open_chains.setdefault((chain, code), []).append(number)
    return _Chains(concepts, first, None if part.tmd is None else part.tmd[origin])


def _assemble(
    parts: list[_Chains], bank: np.ndarray, split: np.ndarray | None, seed: int, encoder_name: str
) -> Dataset:
    concepts = [chain for part in parts for chain in part.concepts]
    lengths = [len(chain) for chain in concepts]
    values = np.concatenate([np.array(c, dtype=np.int32) for c in concepts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first = np.array([f for part in parts for f in part.first], dtype=np.uint8)
    source = np.zeros(len(concepts), dtype=np.uint8)
    if split is None:
        split = split_chains(values, offsets, source, seed=seed, first=first, min_context=LEARN_ALL)
    return Dataset(
        bank=bank,
        texts=np.array([f"concept {i:06d}" for i in range(len(bank))]),
        chain_values=values,
        chain_offsets=offsets,
        chain_source=source,
        chain_tmd=_all_tmd(parts),
        split=split.astype(np.uint8),
        meta={
            "schema_version": SCHEMA_VERSION,
            "encoder": {"name": encoder_name, "weight_hash": "unknown"},
            "builder_version": __version__,
            "sources": [SOURCE],
            "licence": "unknown",
            "seed": seed,
            "texts": "placeholder",
            "counts": {"concepts": len(bank), "chains": len(concepts)},
        },
        chain_first=first,
    )


def _all_tmd(parts: list[_Chains]) -> np.ndarray | None:
    codes = [part.tmd for part in parts if part.tmd is not None]
    return np.concatenate(codes) if codes else None


def _note_split(report: ImportReport, dataset: Dataset) -> None:
    """Note that the split was made by the import, and which leaks it cannot exclude."""
    report.notes.append(
        f"no split in the file: made one, 70/15/15 by chain, seed {dataset.meta['seed']}. Windows "
        "cut from one longer sequence cannot be recognized as such and may lie in different "
        "splits: look at the share of transitions seen in train"
    )
    made = split_report(
        dataset.chain_values,
        dataset.chain_offsets,
        dataset.chain_source,
        dataset.split,
        [SOURCE],
        first=dataset.chain_first,
        min_context=LEARN_ALL,
    )
    report.notes += made.warnings


def _close(report: ImportReport, file: LegacyFile, dataset: Dataset) -> None:
    """Note what the older file lacks, and count what was imported."""
    if file.ignored:
        report.notes.append(f"keys not read: {', '.join(file.ignored)}")
    report.notes.append("no texts imported: concepts have the placeholders 'concept 000000' and up")
    if dataset.meta["encoder"]["name"] == "unknown":
        report.notes.append("the encoder is unknown: name it with --encoder-name if you know it")
    for split in SPLITS:
        report.imported[split] = (dataset.n_examples(split), len(dataset.chains_in(split)))
    empty = [split for split, (n, _) in report.imported.items() if n == 0]
    if empty:
        report.notes.append(f"no examples in {', '.join(empty)}: nothing can be measured on it")


def _table(rows: list[list[object]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
