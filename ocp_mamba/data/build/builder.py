"""From chains of texts to a dataset: clean, encode, split, and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ocp_mamba.config import MIN_CONTEXT, __version__
from ocp_mamba.data.build.chains import Chain, CleanReport, clean_chains
from ocp_mamba.data.build.tmd import UNKNOWN, dense
from ocp_mamba.data.dataset import SCHEMA_VERSION, SPLITS, Dataset, to_float16, unit_rows
from ocp_mamba.data.split import SplitReport, split_chains, split_report
from ocp_mamba.embeddings.encoders import Encoder, encode_with_resume
from ocp_mamba.errors import DatasetError

MANY_ZERO_TMD = 0.1
"""Largest share of chains without TMD codes without a warning."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        clean: what cleaning the chains left out.
        split: chains per source and split.
        concepts: rows of the bank.
        sequences: OCP sequences of each split.
        zero_tmd: share of the chains whose TMD codes are all zero.
        relations: steps of each relation, by its name; empty where the chains name none.
        unknown_steps: steps of unknown relation.
        duplicates: texts whose stored vector is that of an earlier text, so that no lookup can tell
            them apart.
        fingerprint: of the dataset.
    """

    clean: CleanReport
    split: SplitReport
    concepts: int
    sequences: dict[str, int]
    zero_tmd: float
    relations: dict[str, int]
    unknown_steps: int
    duplicates: tuple[str, ...]
    fingerprint: str

    @property
    def warnings(self) -> list[str]:
        """What a reader of results on this dataset must know."""
        found = list(self.split.warnings)
        if self.zero_tmd > MANY_ZERO_TMD:
            found.append(f"{self.zero_tmd:.1%} of the chains have no TMD codes")
        if self.duplicates:
            found.append(
                f"{len(self.duplicates)} concepts have the vector of another one, such as "
                f"{', '.join(map(repr, self.duplicates[:5]))}: no lookup can tell them apart"
            )
        return found

    def to_markdown(self) -> str:
        """The report as a few lines and a table."""
        numbers = [
            ["concepts", f"{self.concepts:,}"],
            ["chains", f"{self.clean.kept:,}"],
            ["OCP sequences", f"{sum(self.sequences.values()):,}"],
            *[[f"OCP sequences in {split}", f"{n:,}"] for split, n in self.sequences.items()],
            ["chains without TMD codes", f"{self.zero_tmd:.1%}"],
            *[[f"steps by {name}", f"{n:,}"] for name, n in self.relations.items()],
            *([["steps of unknown relation", f"{self.unknown_steps:,}"]] if self.relations else []),
            ["fingerprint", self.fingerprint],
        ]
        parts = [
            str(self.clean),
            tabulate(numbers, ["number", "value"], tablefmt="github", disable_numparse=True),
            self.split.to_markdown(),
            "\n".join(f"Warning: {warning}" for warning in self.warnings),
        ]
        return "\n\n".join(part for part in parts if part)


def usable_chains(chains: Iterable[Chain]) -> tuple[list[Chain], CleanReport]:
    """Return the chains that are left after cleaning; cheap, and done before an encoder is loaded.

    Raises:
        DatasetError: none is left.
    """
    kept, clean = clean_chains(chains)
    if not kept:
        raise DatasetError(f"no chains to build from: {clean}")
    return kept, clean


def build_dataset(
    chains: Iterable[Chain],
    encoder: Encoder,
    *,
    seed: int,
    licence: str,
    cache_dir: str | Path,
    dtype: str = "float16",
    progress: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Dataset, BuildReport]:
    """Build a dataset. The same chains, encoder and seed give the same fingerprint.

    Chains are split by `split_chains`, siblings together. The bank's rows are in the order of the
    sorted texts; the chains keep theirs.

    Args:
        chains: as read or drawn; `clean_chains` is applied to them.
        encoder: makes the vectors.
        seed: seed of the split.
        licence: what the chains may be used for, and who owns them.
        cache_dir: where encoding keeps its shards; the caller removes it once the dataset is saved.
        dtype: precision of the bank, "float16" or "float32".
        progress: show a bar while encoding.
        facts: what else the file's ``meta`` says, by key.

    Raises:
        DatasetError: no chain is left after cleaning, or there are too many sources.
        EncoderError: as `encode_with_resume`.
    """
    kept, clean = usable_chains(chains)
    texts = sorted({text for chain in kept for text in chain.concepts})
    row_of = {text: row for row, text in enumerate(texts)}
    values = np.array([row_of[text] for chain in kept for text in chain.concepts], dtype=np.int32)
    offsets = np.cumsum([0] + [len(chain.concepts) for chain in kept], dtype=np.int64)
    names = sorted({chain.source for chain in kept})
    if len(names) > np.iinfo(np.uint8).max:
        raise DatasetError(f"{len(names)} sources found in the chains, at most 255 wanted")
    source = np.array([names.index(chain.source) for chain in kept], dtype=np.uint8)
    split = split_chains(values, offsets, source, seed=seed, join_siblings=True)
    codes = np.array([chain.codes for chain in kept])
    coded = (codes != UNKNOWN).any(axis=1)
    relation_names, relation, confidence = _steps(kept)
    vectors = unit_rows(encode_with_resume(encoder, texts, cache_dir, progress=progress))
    counts = np.bincount(split, weights=np.diff(offsets) - MIN_CONTEXT, minlength=len(SPLITS))
    sequences = dict(zip(SPLITS, counts.astype(int).tolist(), strict=True))
    dataset = Dataset(
        bank=unit_rows(to_float16(vectors)) if dtype == "float16" else vectors,
        texts=np.array(texts),
        chain_values=values,
        chain_offsets=offsets,
        chain_source=source,
        chain_tmd=dense(codes) if coded.any() else None,
        split=split,
        meta={
            "schema_version": SCHEMA_VERSION,
            "builder_version": __version__,
            "encoder": {"name": encoder.name, "weight_hash": encoder.weight_hash},
            "sources": names,
            "licence": licence,
            "seed": seed,
            "counts": {"concepts": len(texts), "chains": len(kept), "sequences": sequences},
            **({"relations": relation_names} if relation_names else {}),
            **(facts or {}),
        },
        chain_first=np.full(len(kept), MIN_CONTEXT, dtype=np.uint8),
        bank_dtype=dtype,
        chain_relation=relation,
        chain_confidence=confidence,
    )
    report = BuildReport(
        clean=clean,
        split=split_report(values, offsets, source, split, names, join_siblings=True),
        concepts=len(texts),
        sequences=sequences,
        zero_tmd=float(1 - coded.mean()),
        relations={
            name: int(np.count_nonzero(relation == number))
            for number, name in enumerate(relation_names, start=1)
        },
        unknown_steps=sum(name is None for chain in kept for name in _named(chain)),
        duplicates=_duplicate_texts(dataset),
        fingerprint=dataset.fingerprint,
    )
    return dataset, report


def _named(chain: Chain) -> tuple[str | None, ...]:
    """The relation of each of a chain's steps, None where unknown."""
    return chain.relations or (None,) * (len(chain.concepts) - 1)


def _steps(chains: list[Chain]) -> tuple[list[str], np.ndarray | None, np.ndarray | None]:
    """Names of the relations, sorted, and each value's relation and confidence, as in `Dataset`.

    The relations of a chain without confidences have the confidence 1.
    """
    names = sorted({name for chain in chains for name in chain.relations if name is not None})
    if not names:
        return [], None, None
    if len(names) > np.iinfo(np.uint16).max:
        raise DatasetError(f"{len(names)} relations found in the chains, at most 65535 wanted")
    number = {None: 0} | {name: n for n, name in enumerate(names, start=1)}
    relation = np.array([n for c in chains for n in (0, *(number[name] for name in _named(c)))])
    confidences = [(0.0, *(c.confidences or (1.0,) * (len(c.concepts) - 1))) for c in chains]
    confidence = np.concatenate(confidences).astype(np.float32) * (relation > 0)
    is_given = any(chain.confidences for chain in chains)
    return names, relation.astype(np.uint16), confidence.astype(np.float32) if is_given else None


def _duplicate_texts(dataset: Dataset) -> tuple[str, ...]:
    """Texts whose stored vector an earlier row has too."""
    _, first = np.unique(dataset.stored_bank(), axis=0, return_index=True)
    again = np.setdiff1d(np.arange(dataset.n_concepts), first)
    return tuple(dataset.texts[again].tolist())
