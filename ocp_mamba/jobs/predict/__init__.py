"""Predictions of a trained model: for a person who asks in words, and for whole files."""
