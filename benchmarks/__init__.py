"""Side-by-side timings; `python -m benchmarks` runs them, docs/performance.md shows them."""
