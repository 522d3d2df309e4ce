"""Sweeps: Optuna studies that any number of workers share, each tracked as one MLflow run.

`job.run_sweep` is a whole sweep; importing this room or its `defaults` loads no Optuna.
"""
