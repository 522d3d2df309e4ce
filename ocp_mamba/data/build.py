"""From chains of texts to a dataset: clean, encode, split, and say what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ocp_mamba import __version__
from ocp_mamba.config import MIN_CONTEXT
from ocp_mamba.data.chains import Chain, CleanReport, clean_chains
from ocp_mamba.data.file import SCHEMA_VERSION, SPLITS, Dataset, DatasetError, to_float16, unit_rows
from ocp_mamba.data.split import SplitReport, split_chains, split_report
from ocp_mamba.data.tmd import UNKNOWN, dense
from ocp_mamba.encoders import Encoder, encode_with_resume

MANY_ZERO_TMD = 0.1
"""Share of chains without TMD codes from which on the report warns."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        clean: what cleaning the chains left out.
        split: chains per source and split.
        concepts: rows of the bank.
        sequences: OCP sequences of each split.
        zero_tmd: share of the chains whose TMD codes are all zero.
        twins: texts whose stored vector is that of an earlier text; no lookup can tell them apart.
        fingerprint: of the dataset.
    """

    clean: CleanReport
    split: SplitReport
    concepts: int
    sequences: dict[str, int]
    zero_tmd: float
    twins: tuple[str, ...]
    fingerprint: str

    @property
    def warnings(self) -> list[str]:
        """What a reader of results on this dataset has to know."""
        found = list(self.split.warnings)
        if self.zero_tmd > MANY_ZERO_TMD:
            found.append(f"{self.zero_tmd:.1%} of the chains have no TMD codes")
        if self.twins:
            found.append(
                f"{len(self.twins)} concepts have the vector of another one, such as "
                f"{', '.join(map(repr, self.twins[:5]))}: no lookup can tell them apart"
            )
        return found

    def to_markdown(self) -> str:
        """The report as a few lines and a table."""
        figures = [
            ["concepts", f"{self.concepts:,}"],
            ["chains", f"{self.clean.kept:,}"],
            ["OCP sequences", f"{sum(self.sequences.values()):,}"],
            *[[f"OCP sequences in {split}", f"{n:,}"] for split, n in self.sequences.items()],
            ["chains without TMD codes", f"{self.zero_tmd:.1%}"],
            ["fingerprint", self.fingerprint],
        ]
        parts = [
            str(self.clean),
            tabulate(figures, ["figure", "value"], tablefmt="github", disable_numparse=True),
            self.split.to_markdown(),
            "\n".join(f"Warning: {warning}" for warning in self.warnings),
        ]
        return "\n\n".join(part for part in parts if part)


def build_dataset(
    chains: Iterable[Chain],
    encoder: Encoder,
    *,
    seed: int,
    licence: str,
    cache_dir: str | Path,
    dtype: str = "float16",
    progress: bool = True,
) -> tuple[Dataset, BuildReport]:
    """Build a dataset. The same chains, encoder and seed give the same fingerprint.

    Chains are split by `split_chains`, siblings together. The bank's rows are in the order of the
    sorted texts; the chains keep theirs.

    Args:
        chains: as read or drawn; `clean_chains` is applied to them.
        encoder: makes the vectors.
        seed: of the split.
        licence: what the chains may be used for, and whose they are.
        cache_dir: where encoding keeps its shards; the caller removes it once the dataset is saved.
        dtype: precision of the bank, "float16" or "float32".
        progress: show a bar while encoding.

    Raises:
        DatasetError: no chain is left after cleaning, or there are too many sources.
        EncoderError: as `encode_with_resume`.
    """
    kept, clean = clean_chains(chains)
    if not kept:
        raise DatasetError(f"no chains to build from: {clean}")
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
        },
        chain_first=np.full(len(kept), MIN_CONTEXT, dtype=np.uint8),
        bank_dtype=dtype,
    )
    report = BuildReport(
        clean=clean,
        split=split_report(values, offsets, source, split, names, join_siblings=True),
        concepts=len(texts),
        sequences=sequences,
        zero_tmd=float(1 - coded.mean()),
        twins=_twins(dataset),
        fingerprint=dataset.fingerprint,
    )
    return dataset, report


def _twins(dataset: Dataset) -> tuple[str, ...]:
    """Texts whose stored vector an earlier row has too."""
    _, first = np.unique(dataset.stored_bank(), axis=0, return_index=True)
    again = np.setdiff1d(np.arange(dataset.n_concepts), first)
    return tuple(dataset.texts[again].tolist())
