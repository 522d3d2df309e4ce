"""Evaluation of a predictor on a split: metrics with intervals, comparisons, gates, latency.

The result is plain data (`result.Evaluation`); this room knows no training and no tracker. Import
from its modules: `names` alone is light enough for the command line.
"""
