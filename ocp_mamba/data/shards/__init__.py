"""Datasets larger than memory: a folder of memory-mapped arrays, and its conversion from `.npz`."""
