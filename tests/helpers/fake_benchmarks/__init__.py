"""Benchmarks that are slow, hang, fail or end well, for tests of the command."""
