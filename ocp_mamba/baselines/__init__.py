"""Predictors to compare the model with: simple ones, and a GRU and a Transformer of its size.

Modules are imported by name: `simple`, `neural`, and `checkpoint` for the files of the latter.
"""
