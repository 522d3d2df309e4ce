"""What a sweep does where nothing else is asked for; importing this loads no Optuna."""

from __future__ import annotations

OBJECTIVES = {"cosine": "next_vec_cosine", "p1": "retrieval_p1"}
"""Each is maximized, on the validation split, at the epoch of the best cosine."""

PRUNERS = ("asha", "hyperband", "median", "none")
DEFAULT_TRIALS = 20
GRACE_SECONDS = 60
"""A worker that was silent for so long is taken for dead."""

WARM_TRIALS = 5
"""How many configurations a warm start takes from an earlier study."""

STARTUP_TRIALS = 5
"""So many first trials are never pruned: the others need whole ones to be compared with."""
