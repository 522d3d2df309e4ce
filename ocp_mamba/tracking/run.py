"""`TrackedRun`: an MLflow run as trainings and evaluations write to it."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset as LoggedDataset
from mlflow.entities import DatasetInput as LoggedInput
from mlflow.entities import InputTag, Run

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.tracking.charts import epoch_lines
from ocp_mamba.tracking.dataset_input import DatasetInput
from ocp_mamba.tracking.offline_queue import OfflineQueue, Operation
from ocp_mamba.tracking.operations import apply, metric_entry, model_entry
from ocp_mamba.tracking.store import STORE_FAILURES
from ocp_mamba.tracking.tags import ENDED_REASON
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.state import EpochResult

NOT_RUN = "not-run"
CONTEXT = "mlflow.data.context"

TRAINED_ON = "training"
TRAINING_INPUTS: Mapping[str, str] = {"train": TRAINED_ON, "val": "validation"}
"""The splits that a training reads, and the context in which MLflow shows each."""

Numbers = Mapping[str, float | None]


class TrackedRun:
    """An open MLflow run; `session.track` makes it.

    Everything is sent through an `OfflineQueue`, which keeps it in a file while the store does not
    answer.
    """

    has_rows = True
    """Whether each epoch gets a row of the Models page."""

    def __init__(
        self,
        active: Run,
        store: str,
        dataset: Dataset,
        data_path: Path | str,
        output_dir: Path,
        checkpoint_every: int = 0,
        inputs: Mapping[str, str] = TRAINING_INPUTS,
        evaluated: Dataset | None = None,
    ) -> None:
        """Wrap an active run and log splits of the dataset as its inputs, each in its context.

        The split that is trained on is the dataset's; the others are those of ``evaluated``, if
        it is given.
        """
        self.run_id: str = active.info.run_id
        self.experiment_id: str = active.info.experiment_id
        self.name: str = active.info.run_name
        self.store = store
        self.queue_path = output_dir / f"{self.run_id}.queue.jsonl"
        self._queue = OfflineQueue(self.queue_path, apply, store=store, failures=STORE_FAILURES)
        self._logged_params: dict[str, str] = dict(active.data.params)
        self._dataset = dataset
        self._inputs = {
            s: DatasetInput(dataset if use == TRAINED_ON else evaluated or dataset, s, data_path)
            for s, use in inputs.items()
        }
        self._output_dir = output_dir
        self._checkpoint_every = checkpoint_every
        self._baselines: Mapping[str, Mapping[str, float]] = {}
        self._best: tuple[int, float] | None = None
        self._last: tuple[int, Path] | None = None
        self._model_ids: dict[int, str | None] = {}
        self._opened = time.perf_counter()
        self._cost = _Cost()
        with self._cost:
            mlflow.MlflowClient().log_inputs(
                self.run_id,
                [
                    LoggedInput(
                        LoggedDataset(**self._inputs[split].to_dict()), [InputTag(CONTEXT, name)]
                    )
                    for split, name in inputs.items()
                ],
            )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params; one that the run has with another value is logged as ``resolved.<name>``.

        MLflow refuses to change a param, and ``mlflow run`` logs params as typed, such as ``1e-3``.
        """
        new: dict[str, str] = {}
        for key, value in params.items():
            if key not in self._logged_params:
                new[key] = str(value)
            elif self._logged_params[key] != str(value):
                new[f"resolved.{key}"] = str(value)
        self._logged_params |= new
        self._send({"op": "log", "params": new})

    def log_results(
        self,
        numbers: Numbers,
        gates: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        epoch: int | None = None,
        split: str = "val",
    ) -> None:
        """Log final metrics.

        Args:
            numbers: the metrics by name; None, or a number that is not finite, becomes the tag
                ``metric.<name>`` instead.
            gates: verdicts by name, logged as tags ``gate.<name>``.
            tags: further tags.
            epoch: the epoch whose model was evaluated; its row then shows the metrics too. They
                have step 0 all the same: MLflow draws a bar for each run then, and else a dot.
            split: the split that the model was evaluated on.
        """
        found, notes = self._entries(numbers, epoch or 0, lambda name: split)
        metrics = [{**metric, "step": 0} for metric in found]
        notes |= {f"gate.{name}": verdict for name, verdict in (gates or {}).items()}
        notes |= tags or {}
        self._send({"op": "log", "epoch": epoch, "metrics": metrics, "tags": notes})

    def compare_with(self, baselines: Mapping[str, Mapping[str, float]]) -> None:
        """Log baselines' values beside each epoch from now on, so that charts show them as lines.

        Args:
            baselines: for each baseline its values by the keys of `charts.LINES`.
        """
        self._baselines = baselines

    def on_epoch(self, result: EpochResult) -> None:
        """Log an epoch's metrics, on the run and on the epoch's row of the Models page."""
        before = self._cost.seconds
        with self._cost:
            self._log_epoch(result)
        self._cost.in_epochs += self._cost.seconds - before
        self._cost.training = time.perf_counter() - self._opened

    def _log_epoch(self, result: EpochResult) -> None:
        self._best = self._better(result)
        numbers = _epoch_numbers(result)
        numbers |= epoch_lines(numbers, self._baselines)
        numbers |= {"best_epoch": self._best[0], "best_val_next_vec_cosine": self._best[1]}
        metrics, notes = self._entries(numbers, result.epoch, _split_of)
        notes |= {alarm.tag: str(alarm) for alarm in result.alarms}
        epoch = result.epoch if self.has_rows else None
        self._send({"op": "log", "epoch": epoch, "metrics": metrics, "tags": notes})
        if not self.has_rows:
            return
        if self._checkpoint_every and result.epoch % self._checkpoint_every == 0:
            self._store_model(result.epoch, self._save(result), delete=True)
        elif result.is_last:
            self._last = (result.epoch, self._save(result))

    def _better(self, result: EpochResult) -> tuple[int, float]:
        """The best epoch so far, including this one, and its cosine."""
        if result.is_best or self._best is None:
            return result.epoch, result.val["next_vec_cosine"]
        return self._best

    def log_models(self, best_checkpoint: Path, best_epoch: int) -> str | None:
        """Store the best and the last epoch's whole models, each in its epoch's own row.

        Returns:
            The best one's LoggedModel id, or None if it waits in the offline queue.
        """
        with self._cost:
            if best_epoch not in self._model_ids:
                self._store_model(best_epoch, best_checkpoint, delete=False)
            if self._last is not None and self._last[0] in self._model_ids:
                self._last[1].unlink(missing_ok=True)
            elif self._last is not None:
                self._store_model(*self._last, delete=True)
            self._last = None
            self._send({"op": "log", "tags": {"best.epoch": str(best_epoch)}})
        return self._model_ids[best_epoch]

    def link_model(self, model_id: str) -> None:
        """Log a LoggedModel as the run's input, so that the UI links each to the other."""
        self._send({"op": "model_input", "model_id": model_id})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into a folder of the run's artifacts."""
        self._send({"op": "artifact", "path": str(path.resolve()), "artifact_path": folder})

    def log_child(
        self,
        name: str,
        params: Mapping[str, Any],
        numbers: Numbers,
        tags: Mapping[str, str] | None = None,
        *,
        history: Sequence[EpochRecord] = (),
        files: Sequence[Path] = (),
    ) -> str | None:
        """Log a finished run nested under this one; returns its id, or None if it is queued.

        Args:
            name: the run's name.
            params: the settings that it was made with.
            numbers: as in `log_results`.
            tags: further tags.
            history: epochs, each logged at its own step.
            files: copied into the run's artifacts.
        """
        metrics, notes = self._entries(numbers, 0, lambda name: None)
        for record in history:
            metrics += self._entries(_epoch_numbers(record), record.epoch, lambda name: None)[0]
        operation = {
            "op": "child",
            "id": uuid.uuid4().hex,
            "name": name,
            "time": _now(),
            "params": {key: str(value) for key, value in params.items()},
            "metrics": metrics,
            "tags": {**(tags or {}), **notes},
            "files": [str(path.resolve()) for path in files],
        }
        return self._send(operation)

    def log_cost(self) -> dict[str, float]:
        """Log and return the time that tracking has cost so far.

        ``tracking_seconds`` is all the time spent in this object. ``tracking_share`` is the time of
        the epochs' logging, as a share of the time from the run's start to its last epoch's end.
        """
        cost: dict[str, float] = {"tracking_seconds": self._cost.seconds}
        if self._cost.training:
            cost["tracking_share"] = self._cost.in_epochs / self._cost.training
        metrics, _ = self._entries(cost, 0, lambda name: None)
        self._send({"op": "log", "metrics": metrics})
        return cost

    def end(self, status: str, reason: str = "") -> None:
        """End the run; what could not be sent stays in the offline queue, and a hint is printed."""
        if reason:
            self._send({"op": "log", "tags": {ENDED_REASON: reason}})
        drained = self._queue.drain(now=True)
        ended = self._terminate(status)
        if not (drained and ended):
            self._queue.append(
                {"op": "end", "run_id": self.run_id, "status": status, "time": _now()}
            )
            print(
                f"The tracking store {self.store} did not take everything. When it answers:\n"
                f"  ocp-mamba runs replay {self.queue_path}"
            )

    def _terminate(self, status: str) -> bool:
        return end_active_run(status)

    def _send(self, operation: Operation) -> Any:
        with self._cost:
            return self._queue.send({**operation, "run_id": self.run_id})

    def _entries(
        self, numbers: Numbers, step: int, split_of: Callable[[str], str | None]
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Return the finite numbers as metrics, and a tag for each of the others."""
        metrics: list[dict[str, Any]] = []
        notes: dict[str, str] = {}
        now = _now()
        for name, value in numbers.items():
            if value is None:
                notes[f"metric.{name}"] = NOT_RUN
            elif not math.isfinite(value):
                notes[f"metric.{name}"] = f"not finite ({value}) at step {step}"
            else:
                source = self._inputs.get(split_of(name) or "")
                dataset = source.identity if source else None
                metrics.append(metric_entry(name, float(value), now, step, dataset))
        return metrics, notes

    def _save(self, result: EpochResult) -> Path:
        assert isinstance(result.model, OCPMambaLVM)
        path = self._output_dir / f"{self.run_id}.epoch-{result.epoch:03d}.pt"
        save_checkpoint(
            path,
            result.model,
            dataset_fingerprint=self._dataset.fingerprint,
            encoder=dict(self._dataset.meta.get("encoder", {})),
            loop={"epoch": result.epoch, "val": result.val},
            learnt=result.learnt,
        )
        return path

    def _store_model(self, epoch: int, checkpoint: Path, *, delete: bool) -> None:
        operation = model_entry(epoch, checkpoint, delete_checkpoint=delete)
        self._model_ids[epoch] = self._send(operation)


class _Cost:
    """Seconds spent inside its outermost ``with`` blocks, in all and in epochs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.in_epochs = 0.0
        self.training = 0.0
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._started = time.perf_counter()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._started


def end_active_run(status: str) -> bool:
    """End MLflow's active run, if there is one; returns whether the store took it."""
    try:
        mlflow.end_run(status)
    except STORE_FAILURES:
        return False
    return True


def _epoch_numbers(record: EpochRecord) -> dict[str, float]:
    """An epoch's numbers by the names of their metrics; a trend is absent where it is None."""
    trend, longest = record.improvement_trend, record.longest_chain
    return {
        **{f"val_{name}": value for name, value in record.val.items()},
        **{_train_metric(name): value for name, value in record.losses.items()},
        **({} if trend is None else {"improvement_trend": trend}),
        **({} if longest is None else {"curriculum_longest_chain": float(longest)}),
        "epoch_seconds": record.seconds,
        "learning_rate": record.lr,
        "examples_per_second": record.examples_per_second,
    }


def _train_metric(name: str) -> str:
    """The name of a training metric; that of a loss term begins with ``train_loss_``."""
    return "train_grad_norm" if name == "grad_norm" else f"train_loss_{name}"


def _split_of(name: str) -> str | None:
    """The split that an epoch's metric was computed on, or None."""
    if name.startswith(("val_", "improvement_trend")):
        return "val"
    return "train" if name.startswith("train_") else None


def _now() -> int:
    return int(time.time() * 1000)
