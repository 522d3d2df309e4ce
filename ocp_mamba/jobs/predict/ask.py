"""Asking a trained model in words, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocp_mamba.jobs.common import Log
from ocp_mamba.jobs.predict.open_version import default_model, open_model


@dataclass(frozen=True)
class AskJob:
    """A question to a trained model.

    Attributes:
        concepts: the texts of one chain.
        model: ``models:/…`` or the path of a ``.pt``; None for the champion, see `default_model`.
        data: the dataset whose bank is used; a version has a bank of its own.
        encoder: name or folder of an encoder of texts that are not in the bank.
        top_k: next concepts of each step.
        steps: steps of the rollout.
        codes: domain, task and modifier, for a model that takes TMD codes.
    """

    concepts: Sequence[str]
    model: str | None = None
    data: Path | None = None
    encoder: str | None = None
    top_k: int = 5
    steps: int = 1
    codes: Sequence[int] | None = None


def ask(job: AskJob, log: Log) -> dict[str, Any]:
    """Return the answer in the form of `ocp-mamba serve`: the model, and one prediction.

    Args:
        job: the question.
        log: told what a person must know about the answer.

    Raises:
        RequestError: a text is unknown or ambiguous, or a count is out of range.
        JobError, RegistryError, CheckpointError, DatasetError, EncoderError: see `open_model` and
            `OpenedModel.text_predictor`.
    """
    address = job.model or default_model(log)
    opened = open_model(address, job.data)
    predictor = opened.text_predictor(job.encoder)
    if opened.model.config.d_tmd and job.codes is None:
        log(
            "NOTE: this model takes TMD codes, and none are given: it answers as for unknown "
            "ones. Give them: --codes DOMAIN,TASK,MODIFIER"
        )
    predictions = predictor.predict(
        [list(job.concepts)],
        top_k=job.top_k,
        steps=job.steps,
        codes=None if job.codes is None else [job.codes],
    )
    return {"model": {"name": opened.name, "version": opened.version}, "predictions": predictions}
