"""Promotion: what is kept as evidence for a trained model, and what a version is promoted by."""
