"""Analysis of datasets: leaks between splits, duplicates, samples to evaluate on, and subsets."""
