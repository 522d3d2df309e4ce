"""Honest experiment tracking for next-vector prediction with a Mamba-2 latent vector model."""

__version__ = "0.1.0"
