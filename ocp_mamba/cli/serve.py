"""`ocp-mamba serve`: predictions over HTTP, from a registered version or a file."""

from __future__ import annotations

import os
from typing import Any

import click

from ocp_mamba.cli.options import with_errors

TOKEN_VARIABLE = "OCP_MAMBA_SERVE_TOKEN"
POLL_TIMEOUT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""The registry is asked each second, so that an answer which does not come is not waited for."""


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba serve
      ocp-mamba serve models:/ocp-mamba-lvm/3 --port 8080
      ocp-mamba serve outputs/model.pt --data ocp_training_9k.npz
    """
)
@click.argument("model", default="models:/ocp-mamba-lvm@champion")
@click.option("--data", help="Dataset file with the concepts, where the version brings none.")
@click.option("--encoder", metavar="NAME_OR_FOLDER", help="Encodes texts that are no concept.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=5001, show_default=True,
              help="0 takes a free one.")  # fmt: skip
@click.option("--token", envvar=TOKEN_VARIABLE, show_envvar=True,
              help="Bearer token that requests must bear. Others see the command line: use the "
              "variable.")  # fmt: skip
@click.option("--store", metavar="URI", help="Tracking store with the registry; default "
              "MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the model; 0 leaves torch's choice.")  # fmt: skip
@click.option("--max-batch", type=click.IntRange(min=1), default=64, show_default=True,
              help="Chains computed at once.")  # fmt: skip
@click.option("--max-queue", type=click.IntRange(min=1), default=1024, show_default=True,
              help="Chains that may wait; more get status 429.")  # fmt: skip
@click.option("--body-limit", type=click.FloatRange(min=0, min_open=True), default=16,
              show_default=True, metavar="MIB", help="Size of a request's body.")  # fmt: skip
@click.option("--max-sessions", type=click.IntRange(min=1), default=500, show_default=True,
              help="Sessions that may be open.")  # fmt: skip
@click.option("--session-idle", type=click.FloatRange(min=1), default=600, show_default=True,
              metavar="SECONDS", help="Unused sessions end after this time.")  # fmt: skip
@click.option("--poll", type=click.FloatRange(min=0, min_open=True), default=1.0,
              show_default=True, metavar="SECONDS",
              help="Between look-ups of the alias.")  # fmt: skip
@click.option("--drift-experiment", metavar="NAME",
              help="Log statistics of the requests, never contents, to a run of this "
              "experiment.")  # fmt: skip
def serve(**flags: Any) -> None:
    """Serve MODEL over HTTP, by default the champion, and follow its alias.

    MODEL is models:/NAME@ALIAS, models:/NAME/VERSION or a .pt file.
    """
    for name, value in POLL_TIMEOUT.items():
        os.environ.setdefault(name, value)

    def run() -> None:
        import torch

        from ocp_mamba.service.drift import Drift
        from ocp_mamba.service.routes.app import create_app
        from ocp_mamba.service.server import bound, server_of
        from ocp_mamba.service.settings import MIB, ServiceSettings
        from ocp_mamba.service.state import Service
        from ocp_mamba.tracking.store import use_store

        use_store(flags["store"])
        if flags["threads"]:
            torch.set_num_threads(flags["threads"])
        settings = ServiceSettings(
            host=flags["host"],
            port=flags["port"],
            token=flags["token"],
            max_batch=flags["max_batch"],
            max_queue=flags["max_queue"],
            body_limit=int(flags["body_limit"] * MIB),
            max_sessions=flags["max_sessions"],
            session_idle=flags["session_idle"],
            poll_seconds=flags["poll"],
        )
        if not settings.only_loopback and settings.token is None:
            click.echo(
                f"warning: everyone who reaches {settings.host} can ask this service; set "
                f"{TOKEN_VARIABLE} to a secret",
                err=True,
            )
        where = bound(settings.host, settings.port)  # before the model is loaded, which takes long
        drift = Drift(flags["drift_experiment"]) if flags["drift_experiment"] else None
        service = Service(_source(flags), settings, drift)

        def told(address: str) -> None:
            v = service.serving
            click.echo(f"serving {v.name} version {v.version} at {address}  (Ctrl-C stops)")

        server_of(create_app(service), settings, where, told).run()

    with_errors(run)


def _source(flags: dict[str, Any]) -> Any:
    """Where the model comes from."""
    from ocp_mamba.service.source import PREFIX, FileSource, RegisteredSource
    from ocp_mamba.system.paths import MODEL_HINT, resolve_file

    encoder = None
    if flags["encoder"]:
        from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder

        encoder = SentenceTransformerEncoder(flags["encoder"])
    data = None if flags["data"] is None else resolve_file(flags["data"])
    model = flags["model"]
    if model.startswith(PREFIX):
        return RegisteredSource(model, data, encoder)
    return FileSource(resolve_file(model, MODEL_HINT), data, encoder)
