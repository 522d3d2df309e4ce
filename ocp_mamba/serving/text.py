"""Requests in words: chains of concepts in, the concepts that come next and their scores out.

`TextPredictor` is the core that the command `ask`, the registered model for people and the server
share. It knows neither HTTP nor MLflow. What it returns is plain JSON, see `Prediction`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from ocp_mamba.data.build.tmd import dense
from ocp_mamba.embeddings.encoders import Encoder
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.embeddings.vocabulary import (
    MAX_CHARACTERS,
    SHOWN,
    Vocabulary,
    listing,
    quoted,
)
from ocp_mamba.errors import EncoderError, RequestError
from ocp_mamba.model.lvm import OCPMambaLVM

MAX_STEPS = 100
"""Most steps of a rollout: training's chains have at most 15 concepts."""
MAX_CHAIN = 10_000
"""Most concepts of a chain."""
MAX_POSITIONS = 1_024
"""Positions, padding included, that one pass of the model takes, unless one chain alone has more:
as many as 64 of the longest chains of a dataset."""


class Next(TypedDict):
    """A concept that may come next, and the cosine of its vector to the predicted one."""

    concept: str
    score: float


class Step(TypedDict):
    """The next concepts, best first, and the predicted unit vector where it was asked for."""

    next: list[Next]
    vector: NotRequired[list[float]]


class Prediction(TypedDict):
    """The answer for one chain: its concepts as they were understood, and each step of it."""

    concepts: list[str]
    steps: list[Step]


@dataclass(frozen=True)
class Chains:
    """B chains as the model reads them, right-padded to the longest one's L.

    Attributes:
        concepts: the texts of each chain; one that was found in the bank is spelt as it is there.
        vectors: float32 (B, L, 768), unit rows, zero where padded.
        lengths: int64 (B,).
        tmd: float32 (B, 16), or None for a model that takes none.
    """

    concepts: list[list[str]]
    vectors: Tensor
    lengths: Tensor
    tmd: Tensor | None


class TextPredictor:
    """A model with its bank: answers chains of texts with the concepts that come next.

    A rollout is greedy: the bank vector of the best next concept is fed back as the next input, so
    that asking for two steps is asking once, and again with the answer at the chain's end.
    """

    def __init__(
        self,
        model: OCPMambaLVM,
        bank: np.ndarray,
        texts: Sequence[str] | np.ndarray,
        *,
        encoder: Encoder | None = None,
        identity: Mapping[str, Any] | None = None,
        index: str = "auto",
    ) -> None:
        """Index the bank.

        Args:
            model: in evaluation mode, on the CPU.
            bank: float32 (n_concepts, 768), unit rows.
            texts: (n_concepts,), one a row.
            encoder: encodes texts that the bank does not hold; without one they are refused.
            identity: of the encoder of the bank's vectors, ``name`` and ``weight_hash``.
            index: one of `embeddings.index.KINDS`.

        Raises:
            EncoderError: the encoder is not the one that the bank's vectors come from.
        """
        if len(texts) != len(bank):
            raise ValueError(f"{len(bank)} bank rows and {len(texts)} texts; one text a row wanted")
        self.model, self.bank, self.encoder = model, bank, encoder
        self.identity = dict(identity or {})
        self.vocabulary = Vocabulary(texts)
        self.index = BankIndex(bank, index)
        if encoder is not None:
            require_encoder(encoder, self.identity)

    def predict(
        self,
        concepts: Sequence[Sequence[str]],
        top_k: int = 5,
        steps: int = 1,
        return_vectors: bool = False,
        codes: Sequence[Sequence[int]] | None = None,
    ) -> list[Prediction]:
        """Answer chains of texts; see `next_concepts` for all but the first argument.

        Args:
            concepts: B chains, each of 1 to `MAX_CHAIN` texts.
            top_k: next concepts of each step.
            steps: steps of the rollout.
            return_vectors: whether each step has its predicted vector.
            codes: domain, task and modifier of each chain, for a model that takes TMD codes.

        Raises:
            RequestError: an argument is not what is wanted, or a text is unknown or ambiguous.
        """
        self.check_counts(top_k, steps)
        chains = self.read(concepts, codes)
        return self.next_concepts(chains, top_k, steps, return_vectors)

    def check_counts(self, top_k: object, steps: object) -> None:
        """Refuse counts that are out of their range.

        Raises:
            RequestError: one of them is no whole number from 1 to its limit.
        """
        _whole_number("top_k", top_k, len(self.bank), "the number of concepts in the bank")
        _whole_number("steps", steps, MAX_STEPS, "the longest rollout")

    def read(self, concepts: object, codes: Sequence[Sequence[int]] | None = None) -> Chains:
        """Look up, or encode, the texts of some chains; arguments as `predict`.

        Raises:
            RequestError: as `predict`.
        """
        asked = _chains_of_texts(concepts)
        vector_of: dict[str, np.ndarray] = {}
        name_of: dict[str, str] = {}
        unknown: dict[str, str] = {}
        for b, chain in enumerate(asked):
            for t, text in enumerate(chain):
                if text in name_of or text in unknown:
                    continue
                row = self.vocabulary.row(text)
                if row is None:
                    unknown[text] = f"concepts[{b}][{t}]"
                else:
                    name_of[text], vector_of[text] = self.vocabulary.texts[row], self.bank[row]
        if unknown:
            vector_of |= self._encode(unknown)
            name_of |= {text: text for text in unknown}
        L = max(map(len, asked))
        vectors = np.zeros((len(asked), L, self.bank.shape[1]), dtype=np.float32)
        for b, chain in enumerate(asked):
            vectors[b, : len(chain)] = [vector_of[text] for text in chain]
        return Chains(
            [[name_of[text] for text in chain] for chain in asked],
            torch.from_numpy(vectors),
            torch.tensor([len(chain) for chain in asked]),
            self._tmd(codes, len(asked)),
        )

    def next_concepts(
        self, chains: Chains, top_k: int = 5, steps: int = 1, return_vectors: bool = False
    ) -> list[Prediction]:
        """Predict what follows some chains, in passes of chains of like length.

        Args:
            chains: their vectors.
            top_k: next concepts of each step, 1 to the bank's size.
            steps: 1 to `MAX_STEPS`; after each one but the last, the bank vector of its best
                concept is fed back as the next input.
            return_vectors: whether each step has its predicted vector too.

        Raises:
            RequestError: ``top_k`` or ``steps`` is out of range.
        """
        self.check_counts(top_k, steps)
        answers: dict[int, list[Step]] = {}
        for rows in _passes(chains.lengths):
            part = self._roll_out(chains, rows, top_k, steps, return_vectors)
            answers |= dict(zip(rows.tolist(), part, strict=True))
        return [
            {"concepts": concepts, "steps": answers[b]}
            for b, concepts in enumerate(chains.concepts)
        ]

    def name_vectors(self, predicted: np.ndarray, top_k: int) -> list[list[Next]]:
        """Return the ``top_k`` concepts nearest to each of B vectors ``(B, 768)``, best first."""
        scores, ids = self.index.search(predicted, top_k)
        return [
            [
                {"concept": self.vocabulary.texts[row], "score": score}
                for row, score in zip(found, near, strict=True)
            ]
            for found, near in zip(ids.tolist(), scores.tolist(), strict=True)
        ]

    def _roll_out(
        self, chains: Chains, rows: Tensor, top_k: int, steps: int, return_vectors: bool
    ) -> list[list[Step]]:
        """The steps of the chains of one pass."""
        lengths = chains.lengths[rows]
        vectors = chains.vectors[rows, : int(lengths.max())]
        tmd = None if chains.tmd is None else chains.tmd[rows]
        answers: list[list[Step]] = [[] for _ in rows]
        with torch.inference_mode():
            if steps == 1:
                predicted = self.model(vectors, tmd, lengths)
            else:
                cache = self.model.allocate_inference_cache(len(rows))
                predicted = self.model.prefill(vectors, tmd, cache, lengths)
            for step in range(steps):
                found = self.name_vectors(predicted.numpy(), top_k)
                for answer, names, vector in zip(answers, found, predicted, strict=True):
                    answer.append({"next": names})
                    if return_vectors:
                        answer[-1]["vector"] = vector.tolist()
                if step < steps - 1:
                    _, best = self.index.search(predicted.numpy(), 1)
                    predicted = self.model.step(torch.from_numpy(self.bank[best[:, 0]]), tmd, cache)
        return answers

    def _encode(self, unknown: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The vectors of texts that are not in the bank; ``unknown`` says where each one stands."""
        if self.encoder is not None:
            try:
                rows = self.encoder.encode(list(unknown))
            except EncoderError as error:
                raise RequestError(str(error)) from error
            return dict(zip(unknown, rows, strict=True))
        lines = [
            f"{place} {quoted(text)} (nearest: {listing(self.vocabulary.nearest(text))})"
            for text, place in list(unknown.items())[:SHOWN]
        ]
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        name = self.identity.get("name") or "its encoder"
        raise RequestError(
            f"unknown text: {'; '.join(lines)}{more}. The bank holds {len(self.bank):,} concepts; "
            f"write one of them, or start with the encoder {name}, so that other texts are encoded"
        )

    def _tmd(self, codes: Sequence[Sequence[int]] | None, B: int) -> Tensor | None:
        """TMD vectors of B chains; codes that are not given are unknown, which is all zeros."""
        if not self.model.config.d_tmd:
            if codes is not None:
                raise RequestError("codes are given, and this model takes no TMD codes")
            return None
        try:
            rows = np.asarray([[0, 0, 0]] * B if codes is None else codes, dtype=np.int64)
            if len(rows) != B:
                raise ValueError(f"{len(rows)} rows found, {B} wanted, one a chain")
            return torch.from_numpy(dense(rows))
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"codes: {error}; wanted: domain, task, modifier") from error


def require_encoder(encoder: Encoder, identity: Mapping[str, Any]) -> None:
    """Refuse an encoder that does not give the bank's vectors, by the hash of its weights.

    Raises:
        EncoderError: the hashes differ, or the bank's is not known.
    """
    wanted = identity.get("weight_hash")
    if encoder.weight_hash != wanted:
        raise EncoderError(
            f"encoder mismatch: {encoder.name} has weights {encoder.weight_hash[:12]}, the bank's "
            f"vectors are of {identity.get('name', 'an unknown encoder')} "
            f"(weights {str(wanted)[:12]}); texts encoded by another one mean nothing to the model"
        )


def _whole_number(name: str, value: object, most: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        found = quoted(value) if isinstance(value, str) else f"{value!r:.60}"
        raise RequestError(
            f"{name} is {found}; a whole number from 1 to {most:,} is wanted ({what})"
        )


def _chains_of_texts(concepts: object) -> list[list[str]]:
    """The chains as lists, once they are known to hold texts."""
    if isinstance(concepts, str) or not isinstance(concepts, Sequence | np.ndarray):
        raise _no_chains(f"concepts is {_kind(concepts)}")
    if len(concepts) == 0:
        raise _no_chains("concepts is empty")
    return [_chain_of_texts(b, chain) for b, chain in enumerate(concepts)]


def _chain_of_texts(b: int, chain: object) -> list[str]:
    place = f"concepts[{b}]"
    if isinstance(chain, str) or not isinstance(chain, Sequence | np.ndarray):
        raise _no_chains(f"{place} is {_kind(chain)}")
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise RequestError(f"{place} has {len(chain):,} texts; 1 to {MAX_CHAIN:,} are wanted")
    for t, text in enumerate(chain):
        if not isinstance(text, str):
            raise _no_chains(f"{place}[{t}] is {_kind(text)}")
        if not text.strip() or len(text) > MAX_CHARACTERS:
            raise RequestError(
                f"{place}[{t}] is {quoted(text)} of {len(text):,} characters; a text of 1 to "
                f"{MAX_CHARACTERS:,} characters is wanted, not white space alone"
            )
    return [str(text) for text in chain]


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    return "null" if value is None else f"a {type(value).__name__}"


def _no_chains(found: str) -> RequestError:
    return RequestError(
        f"{found}; a list of chains is wanted, each a list of texts, such as "
        '[["sand tiger", "shark"]]'
    )


def _passes(lengths: Tensor) -> Iterator[Tensor]:
    """Cut chains into passes of like length, of at most `MAX_POSITIONS` positions or one chain."""
    order = torch.argsort(lengths, stable=True)
    start = 0
    for end in range(1, len(order) + 1):
        is_last = end == len(order)
        if is_last or (end + 1 - start) * int(lengths[order[end]]) > MAX_POSITIONS:
            yield order[start:end]
            start = end
