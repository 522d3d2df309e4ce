"""How a model and its baselines carry over to a dataset that they have never seen."""
