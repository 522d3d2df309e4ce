"""Training: epochs over a dataset's train split, loss, schedule, alarms, checkpoints, processes.

Knows models and data, and neither evaluation nor a tracker. `fit` in `trainer` is the entry.
"""
