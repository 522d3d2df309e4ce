"""Vector to text: vec2text, if it is installed and has a corrector for the bank's encoder.

The adapter follows the code of vec2text 0.0.13, and its tests use a substitute with the same
interface. It has never run with real weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from ocp_mamba.errors import DecoderError, first_line

VEC2TEXT = "vec2text"
CORRECTORS: Mapping[str, str] = {"gtr-t5-base": "gtr-base"}
"""vec2text's corrector for each encoder of 768 dimensions, by the last part of its name."""
CORRECTION_STEPS = 20


class Decoder(Protocol):
    """Anything that turns vectors into texts; ``name`` is its name in results."""

    name: str

    def decode(self, vectors: np.ndarray) -> list[str]:
        """Return the texts of float32 rows ``(n, 768)``."""
        ...


class Vec2TextDecoder:
    """A `Decoder` by vec2text's pretrained corrector.

    Source: Morris et al., "Text Embeddings Reveal (Almost) As Much As Text", 2023.
    """

    name = VEC2TEXT

    def __init__(self, encoder_name: str) -> None:
        """Load the corrector that inverts an encoder's vectors; it may download weights.

        Raises:
            DecoderError: vec2text is not installed, has no corrector for the encoder, or cannot
                load it.
        """
        if find_spec(VEC2TEXT) is None:
            raise DecoderError("vec2text is not installed (pip install 'ocp-mamba[vec2text]')")
        corrector = CORRECTORS.get(encoder_name.rsplit("/", 1)[-1])
        if corrector is None:
            raise DecoderError(
                f"vec2text has no corrector for vectors of {encoder_name}, only for "
                f"{', '.join(CORRECTORS)}"
            )
        try:
            import vec2text

            self._invert = vec2text.invert_embeddings
            self._corrector: Any = vec2text.load_pretrained_corrector(corrector)
        except Exception as error:  # vec2text and its downloads raise any kind
            raise DecoderError(
                f"vec2text's corrector {corrector} cannot be loaded: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error

    def decode(self, vectors: np.ndarray) -> list[str]:
        """Return the texts of float32 rows ``(n, 768)``, after 20 steps of correction."""
        found = self._invert(
            embeddings=torch.from_numpy(vectors),
            corrector=self._corrector,
            num_steps=CORRECTION_STEPS,
        )
        return [str(text) for text in found]
