"""The routes of the service: predictions, sessions, MLflow's own, and the pages for people."""
