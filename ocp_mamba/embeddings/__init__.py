"""Texts and vectors: encoders, decoders, and the index that finds a vector's nearest bank rows.

sentence-transformers and vec2text are optional: making an encoder or a decoder loads them.
"""
