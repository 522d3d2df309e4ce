"""`ocp-mamba serve`: predictions over HTTP, in batches across requests, and sessions.

`server.serve` runs it; `app.create_app` makes the FastAPI app around a `state.Service`.
"""
