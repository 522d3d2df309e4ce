"""Tracking in MLflow: the runs of trainings and evaluations, their models, and the registry.

`session.track` opens a run, which is a `run.TrackedRun`; `store` chooses the tracking store.
"""
