"""Benchmarks from outside, each one command: WN18RR."""
