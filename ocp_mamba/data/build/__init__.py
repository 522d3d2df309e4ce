"""Building datasets: chains from ontologies or files, TMD codes, encoding, the build report."""
