"""64-bit hashes of texts and of sequences of texts, and the mixing of numbers behind them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
HASH_BYTES = 8


def mix(x: np.ndarray) -> np.ndarray:
    """Spread numbers over all 64 bits, uint64 to uint64; no two numbers get the same result.

    Source: Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014 (SplitMix64).
    """
    add, one, other = (np.uint64(c) for c in MIX)
    x = x + add
    x = (x ^ (x >> np.uint64(30))) * one
    x = (x ^ (x >> np.uint64(27))) * other
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def normal_form(text: str) -> str:
    """Return a text in Unicode's form NFKC, without upper case, its spaces single."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """Hash each text in its normal form (BLAKE2b of 8 bytes), uint64 ``(n,)``."""
    digests = (
        blake2b(normal_form(text).encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def extend(sequences: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Hash sequences that are longer by one text.

    Args:
        sequences: uint64 ``(n,)``, hashes of the sequences so far; 0 for the empty one.
        texts: uint64 ``(n,)``, hashes of the texts that follow.
    """
    return mix(mix(sequences) + texts)


def prefix_hashes(texts: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Hash every beginning of every chain.

    Args:
        texts: uint64 ``(v,)``, hashes of the texts of all chains, one chain after the other.
        starts: integers ``(m,)``, where each chain begins.
        lengths: integers ``(m,)``, concepts of each chain.

    Returns:
        uint64 ``(v,)``: entry ``starts[c] + k`` is the hash of the first k + 1 texts of chain c.
    """
    out = np.zeros(len(texts), np.uint64)
    hashes = np.zeros(len(starts), np.uint64)
    for depth in range(int(lengths.max(initial=0))):
        longer = lengths > depth
        starts, lengths, hashes = starts[longer], lengths[longer], hashes[longer]
        hashes = extend(hashes, texts[starts + depth])
        out[starts + depth] = hashes
    return out
