"""Link prediction in a knowledge graph: which concept is the parent of a concept, among all.

The outside benchmark is WN18RR; `docs/wn18rr.md` says what is measured and how.
"""
