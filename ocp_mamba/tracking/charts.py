"""How MLflow's pages show an experiment: its charts in order, and its description.

MLflow 3.17 makes a chart of each metric, in the order of their names, and puts sections, which are
the names before a slash, above all others. A *saved view* is a tag of the experiment that says
which charts stand where; the button Views lists it, and a link can open it. `save_view` writes
one, in which each epoch's curve stands beside the lines of the baselines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import mlflow

from ocp_mamba.tracking.tags import NOTE

VIEW = "ocp-mamba-epochs"
"""The id of the saved view, for a link's ``viewStateShareKey``."""
VIEW_NAME = "Epochs beside the baselines"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

EPOCHS, BASELINES = "1_epochs", "2_baselines"
"""Sections that stand first on a page without the saved view, and for the baselines' lines."""
LINES = {"cosine": "val_next_vec_cosine", "p1": "val_retrieval_p1"}
"""What is drawn beside the baselines, and the metric of each epoch that it is."""
BASELINE_NAMES = (
    "persistence",
    "context_mean",
    "global_mean",
    "ridge",
    "nearest_neighbour",
    "gru",
    "transformer",
)
LOSS = ("train_loss_total", "improvement_trend", "epoch_seconds")
FINAL = (
    "next_vec_cosine",
    "faiss_retrieval_p1",
    "unseen_next_vec_cosine",
    "unseen_faiss_retrieval_p1",
    "echo_loop_similarity",
    "train_time_minutes",
    "inference_latency_ms",
)

EXPERIMENT_NOTE = (
    "Trainings, evaluations, sweeps and data checks of ocp_mamba, which predicts the vector of the "
    f"next concept. The view *{VIEW_NAME}* (button Views) shows each epoch's cosine and P@1 on the "
    "val split, with a line for each baseline. Each run's description is its verdict in words, "
    "with all gates; its report is the artifact `reports/report.html`. A row of Models with the "
    "status Pending has the metrics of one epoch and no weights."
)


def epoch_lines(
    epoch: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return the metrics that put an epoch beside the baselines; none without baselines.

    Args:
        epoch: the epoch's metrics, by the names that they have in MLflow.
        baselines: for each baseline its values by the keys of `LINES`.
    """
    numbers: dict[str, float] = {}
    for short, metric in LINES.items():
        values = {name: found[short] for name, found in baselines.items() if short in found}
        if metric not in epoch or not values:
            continue
        numbers[f"{EPOCHS}/val_{short}"] = epoch[metric]
        numbers[f"{EPOCHS}/val_{short}_minus_best_baseline"] = epoch[metric] - max(values.values())
        numbers |= {f"{BASELINES}/{short}_{name}": value for name, value in values.items()}
    return numbers


def baseline_line(name: str, epoch: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that put an epoch of a trained baseline beside the model's.

    Args:
        name: of the baseline.
        epoch: the baseline's metrics, by the names that a model's epoch has in MLflow.
    """
    return {f"{BASELINES}/{s}_{name}": epoch[m] for s, m in LINES.items() if m in epoch}


def describe_experiment(experiment_id: str) -> None:
    """Give an experiment its description and its saved view, where it has none.

    A description or a view that a person has changed stays.
    """
    client = mlflow.MlflowClient()
    held = client.get_experiment(experiment_id).tags
    if not held.get(NOTE):
        client.set_experiment_tag(experiment_id, NOTE, EXPERIMENT_NOTE)
    state = json.dumps(_view_state(), separators=(",", ":"))
    if VIEW_TAG in held and not _to_be_replaced(held[VIEW_TAG], state):
        return
    now = int(time.time() * 1000)
    view = {"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": state}
    client.set_experiment_tag(experiment_id, VIEW_TAG, json.dumps(view))


def _to_be_replaced(tag: str, state: str) -> bool:
    """Whether a view is one of an earlier version; MLflow changes ``updatedAt`` on an edit."""
    try:
        view = json.loads(tag)
        return bool(view["createdAt"] == view["updatedAt"] and view["state"] != state)
    except (ValueError, KeyError, TypeError):
        return False


def _view_state() -> dict[str, Any]:
    """The state of MLflow's page of runs: which charts it shows, in which sections."""
    charts = [
        _line("c1", "s1", [LINES["cosine"], *(f"{BASELINES}/cosine_{n}" for n in BASELINE_NAMES)]),
        _line("c2", "s1", [LINES["p1"], *(f"{BASELINES}/p1_{n}" for n in BASELINE_NAMES)]),
        *(_line(f"l{i}", "s3", [name]) for i, name in enumerate(LOSS)),
        *(_chart(f"f{i}", "s2", "BAR", name) for i, name in enumerate(FINAL)),
    ]
    sections = [
        _section("s1", "Epochs beside the baselines", columns=2),
        _section("s2", "The best epoch", height=280),
        _section("s3", "Training"),
        *(_section(f"h{i}", name, display=False) for i, name in enumerate(HIDDEN)),
    ]
    return {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


HIDDEN = (EPOCHS, BASELINES, "data", "Model metrics", "System metrics")
"""Sections of all other charts, which the saved view keeps closed."""


def _chart(uuid: str, section: str, kind: str, metric: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": uuid,
        "metricSectionId": section,
        "metricKey": metric,
        "deleted": False,
        "isGenerated": False,
    }


def _line(uuid: str, section: str, metrics: list[str]) -> dict[str, Any]:
    return _chart(uuid, section, "LINE", metrics[0]) | {
        "selectedMetricKeys": metrics,
        "displayPoints": len(metrics) == 1,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
    }


def _section(
    uuid: str, name: str, *, columns: int = 3, height: int = 360, display: bool = True
) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": display,
        "columns": columns,
        "cardHeight": height,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }
