"""Building datasets: chains from ontologies or from files, TMD codes, encoding, the build report."""
