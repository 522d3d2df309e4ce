"""The echo loop: encode again the text nearest to a prediction, and compare with the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.decoders import Decoder
from ocp_mamba.embeddings.encoders import Encoder
from ocp_mamba.errors import OcpMambaError
from ocp_mamba.evaluation.metrics import cosine
from ocp_mamba.stats import Figure, bootstrap_mean

PARITY_TEXTS = 64
DECODED_EXAMPLES = 100
"""Predictions that a decoder turns into text at most: each takes seconds."""
MIN_PARITY = 0.999
"""Rounding a row to float16 costs less than 1e-6 of the cosine; other weights cost far more."""


@dataclass(frozen=True)
class Parity:
    """Cosines of bank rows with their own texts encoded again: mean and lowest over ``n``."""

    encoder: str
    n: int
    mean: float
    lowest: float

    def figures(self) -> dict[str, float]:
        """Return the numbers by the names of metrics."""
        return {"encoder_parity_mean": self.mean, "encoder_parity_lowest": self.lowest}


class EncoderMismatchError(OcpMambaError, ValueError):
    """An encoder does not give the bank's vectors: metrics that mix the two mean nothing.

    ``parity`` holds the cosines where a live encoder was tried, else None.
    """

    def __init__(self, message: str, parity: Parity | None = None) -> None:
        """Keep the parity with the message."""
        super().__init__(message)
        self.parity = parity


def check_parity(encoder: Encoder, dataset: Dataset, seed: int = 0) -> Parity:
    """Encode 64 texts of the bank again, drawn by seed; each must match its row.

    Raises:
        EncoderMismatchError: a cosine is below 0.999; names the worst text and both cosines.
    """
    n = min(PARITY_TEXTS, dataset.n_concepts)
    rows = np.random.default_rng(seed).choice(dataset.n_concepts, n, replace=False)
    again = encoder.encode([str(text) for text in dataset.texts[rows]])
    cosines = (again * dataset.bank[rows]).sum(axis=1)
    parity = Parity(encoder.name, n, float(cosines.mean()), float(cosines.min()))
    if parity.lowest < MIN_PARITY:
        worst = dataset.texts[rows[cosines.argmin()]]
        raise EncoderMismatchError(
            f"encoder mismatch: {n} bank texts encoded again by {encoder.name} have a cosine of "
            f"mean {parity.mean:.4f}, lowest {parity.lowest:.4f} ({str(worst)!r}) with their bank "
            f"rows, and each must reach {MIN_PARITY}; the dataset says that it is of "
            f"{dataset.meta.get('encoder', {}).get('name', 'an unknown encoder')}",
            parity,
        )
    return parity


def encode_again(encoder: Encoder, dataset: Dataset, ids: np.ndarray) -> np.ndarray:
    """Encode the texts of some bank rows, each text once.

    Args:
        encoder: of the bank, see `check_parity`.
        dataset: holds the texts.
        ids: integers ``(n,)``, bank rows.

    Returns:
        float32 ``(n, D)`` unit rows.
    """
    distinct, place = np.unique(ids, return_inverse=True)
    vectors: np.ndarray = encoder.encode([str(text) for text in dataset.texts[distinct]])[place]
    return vectors


def decoded_echo(
    decoder: Decoder,
    encoder: Encoder,
    predictions: Tensor,
    targets: Tensor,
    families: np.ndarray,
    seed: int = 0,
) -> dict[str, Figure]:
    """Close the echo loop with a decoder instead of the nearest text, on a seeded sample.

    Args:
        decoder: turns predictions into texts.
        encoder: of the bank; encodes these texts again.
        predictions: float32 ``(n, D)`` unit rows.
        targets: float32 ``(n, D)`` unit rows, the true next vectors.
        families: integers ``(n,)``, see `data.split.families`.
        seed: draws the sample of at most 100.

    Returns:
        ``<decoder>_echo_similarity``, the cosine to the true next vector, and
        ``<decoder>_echo_to_prediction``.
    """
    n = len(predictions)
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:DECODED_EXAMPLES])
    texts = decoder.decode(predictions[rows].numpy())
    again = torch.from_numpy(encoder.encode(texts))
    return {
        f"{decoder.name}_{name}": bootstrap_mean(
            cosine(again, wanted[rows]).numpy(), families[rows], seed
        )
        for name, wanted in {"echo_similarity": targets, "echo_to_prediction": predictions}.items()
    }
