"""Names of the metrics that more than one module asks for; imports nothing heavy.

Their definitions stand in ``docs/metrics.md``.
"""

from __future__ import annotations

COSINE = "next_vec_cosine"
P1, P5, P10 = "faiss_retrieval_p1", "faiss_retrieval_p5", "faiss_retrieval_p10"
MRR = "mrr"
MARGIN = "margin"
CONTEXT_MEAN_MARGIN = "context_mean_margin"
ECHO = "echo_loop_similarity"
RANK = "rank"
"""Place of the target among all bank rows: a number of each example, no metric by itself."""
RECALL = "faiss_recall_at_1"
"""Of an approximate index alone: how often it finds the nearest row."""
LATENCY = "inference_latency_ms"
TRAIN_MINUTES = "train_time_minutes"

VAL_P1 = "retrieval_p1"
"""How each epoch's validation calls P@1; it calls the cosine as an evaluation does, `COSINE`."""

HEADLINE = (COSINE, P1)
"""The two by which predictors are compared, overall and on each stratum."""
LABELS = {"cosine": COSINE, "P@1": P1}
"""The same by how tables and plots call them."""
