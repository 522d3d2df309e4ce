"""What `scripts/gpu_check.py` does on a GPU: stages, each a process with a limit of its own.

`stages` lists them. None imports mlflow, faiss or optuna, and none needs a network. None has ever
run on a GPU: docs/gpu.md keeps that sentence until they have.
"""
