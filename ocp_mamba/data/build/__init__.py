"""Building datasets: chains from WordNet or from files, TMD codes, encoding, the build report."""
