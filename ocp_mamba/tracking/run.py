"""`TrackedRun`: an MLflow run as trainings and evaluations write to it."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset as LoggedDataset
from mlflow.entities import DatasetInput as LoggedInput
from mlflow.entities import InputTag, Run
from mlflow.entities.model_registry import ModelVersion

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import QueueError, TrackingError
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.redact import redact, redact_all
from ocp_mamba.tracking import sender
from ocp_mamba.tracking.active_run import end_run, leave_active_run
from ocp_mamba.tracking.charts import baseline_line, epoch_lines
from ocp_mamba.tracking.dataset_input import DatasetInput, Described
from ocp_mamba.tracking.metrics import Cost, Numbers, entries, epoch_numbers, now, split_of_metric
from ocp_mamba.tracking.offline_queue import OfflineQueue, Operation, queue_path
from ocp_mamba.tracking.operations import apply, model_entry, register_entry, text_model_entry
from ocp_mamba.tracking.registry.aliases import MODEL_NAME
from ocp_mamba.tracking.resumed import logged_points
from ocp_mamba.tracking.store import is_refusal, retried
from ocp_mamba.tracking.tags import BUNDLE, ENDED_REASON
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.state import EpochResult

CONTEXT = "mlflow.data.context"
SHOWN = ("params", "tags", "name")
"""What of an operation people see in MLflow, so that no password may be in it."""

TRAINED_ON = "training"
TRAINING_INPUTS: Mapping[str, str] = {"train": TRAINED_ON, "val": "validation"}
"""The splits that a training reads, and the context in which MLflow shows each."""


class TrackedRun:
    """An open MLflow run; `session.track` makes it.

    What it is told is on the disk when its methods return, in an `OfflineQueue`; the thread of a
    `Sender` sends it. So nothing that the store does holds up a training, and nothing is lost.
    """

    has_rows = True
    """Whether each epoch gets a row of the Models page."""

    def __init__(
        self,
        active: Run,
        store: str,
        dataset: Dataset | Described,
        data_path: Path | str,
        output_dir: Path,
        checkpoint_every: int = 0,
        inputs: Mapping[str, str] = TRAINING_INPUTS,
        evaluated: Dataset | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        """Wrap an active run and log splits of the dataset as its inputs, each in its context.

        The split that is trained on is the dataset's; the others are those of ``evaluated``, if
        it is given. A run that is ``resumed`` keeps what it holds: no metric gets a second point
        at a step, and no param another value.
        """
        self.run_id: str = active.info.run_id
        self.experiment_id: str = active.info.experiment_id
        self.name: str = active.info.run_name
        self.store = redact(store)
        self.queue_path = queue_path(output_dir, self.run_id)
        self._started: int = active.info.start_time
        self._resumed = resumed
        self._held = logged_points(self.run_id) if resumed else frozenset()
        self._sender = sender.Sender(
            OfflineQueue(self.queue_path, store=store), apply, store=store, is_refusal=is_refusal
        )
        self._logged_params: dict[str, str] = dict(active.data.params)
        self._dataset = dataset
        self._inputs: dict[str, DatasetInput] = {}
        for split, use in inputs.items():
            read = dataset if use == TRAINED_ON else evaluated or dataset
            assert isinstance(read, Dataset), "described data are no inputs"
            self._inputs[split] = DatasetInput(read, split, data_path)
        self._output_dir = output_dir
        self._checkpoint_every = checkpoint_every
        self._baselines: Mapping[str, Mapping[str, float]] = {}
        self._best: tuple[int, float] | None = None
        self._last: tuple[int, Path] | None = None
        self._stored: dict[int, str] = {}
        self._children: Counter[str] = Counter()
        self._opened = time.perf_counter()
        self._cost = Cost()
        logged = [
            LoggedInput(LoggedDataset(**self._inputs[split].to_dict()), [InputTag(CONTEXT, name)])
            for split, name in inputs.items()
        ]
        with self._cost:
            retried(lambda: mlflow.MlflowClient().log_inputs(self.run_id, logged))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params; one that the run has with another value is logged as ``resolved.<name>``.

        MLflow refuses to change a param, and ``mlflow run`` logs params as typed, such as ``1e-3``.
        A resumed run has the tag ``resumed.<name>`` instead, which each resumption may change.
        """
        new: dict[str, str] = {}
        changed: dict[str, str] = {}
        for key, value in params.items():
            if key not in self._logged_params:
                new[key] = str(value)
            elif self._logged_params[key] == str(value):
                continue
            elif self._resumed:
                changed[f"resumed.{key}"] = str(value)
            else:
                new[f"resolved.{key}"] = str(value)
        self._logged_params |= new
        self._send({"op": "log", "params": new, "tags": changed})

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
        notes |= {f"gate.{k}": str(v) for k, v in (gates or {}).items()} | dict(tags or {})
        self._log([{**metric, "step": 0} for metric in found], notes, epoch)

    def on_resume(self, results: Sequence[EpochResult]) -> None:
        """Log those epochs of an interrupted training that the run does not hold."""
        with self._cost:
            for result in results:
                if ("val_next_vec_cosine", result.epoch) not in self._held:
                    self._log_numbers(result)
                else:
                    self._best = self._better(result)

    def compare_with(self, baselines: Mapping[str, Mapping[str, float]]) -> None:
        """Log baselines' values beside each epoch from now on, so that charts show them as lines.

        Args:
            baselines: for each baseline its values by the keys of `charts.LINES`.
        """
        self._baselines = baselines

    def compare_with_trained(self, name: str, history: Sequence[EpochRecord]) -> None:
        """Log the epochs of a trained baseline beside the model's, so that it is a line too."""
        for record in history:
            numbers = baseline_line(name, epoch_numbers(record))
            self._log(*self._entries(numbers, record.epoch, lambda name: "val", record.time))

    def on_epoch(self, result: EpochResult) -> None:
        """Log an epoch's metrics, on the run and on the epoch's row of the Models page."""
        before = self._cost.seconds
        with self._cost:
            self._log_epoch(result)
        self._cost.in_epochs += self._cost.seconds - before
        self._cost.training = time.perf_counter() - self._opened

    def _log_epoch(self, result: EpochResult) -> None:
        self._log_numbers(result)
        if not self.has_rows:
            return
        if self._checkpoint_every and result.epoch % self._checkpoint_every == 0:
            path = self._save(result)
            self._store_model(model_entry(result.epoch, path, delete_checkpoint=True))
        elif result.is_last and not result.is_best:  # the best one's file is `log_models`'s
            self._last = (result.epoch, self._save(result))

    def _log_numbers(self, result: EpochResult) -> None:
        self._best = self._better(result)
        numbers = epoch_numbers(result)
        numbers |= epoch_lines(numbers, self._baselines)
        numbers |= {"best_epoch": self._best[0], "best_val_next_vec_cosine": self._best[1]}
        metrics, notes = self._entries(numbers, result.epoch, split_of_metric, result.time)
        notes |= {alarm.tag: str(alarm) for alarm in result.alarms}
        self._log(metrics, notes, result.epoch if self.has_rows else None)

    def _better(self, result: EpochResult) -> tuple[int, float]:
        """The best epoch so far, including this one, and its cosine."""
        if result.is_best or self._best is None:
            return result.epoch, result.val["next_vec_cosine"]
        return self._best

    def log_models(
        self,
        best_checkpoint: Path,
        best_epoch: int,
        bundle: Sequence[Path] = (),
        sha256: str | None = None,
    ) -> None:
        """Store the best and the last epoch's whole models, each in its epoch's own row.

        Args:
            best_checkpoint: the best epoch's file. Keep it as it is until it is stored: a file that
                has changed since is not stored.
            best_epoch: its epoch.
            bundle: files of `write_bundle` that belong to it; deleted when the store has them.
                With them, the model for people is stored too.
            sha256: of the file that was evaluated.

        Raises:
            TrackingError: the file is no longer the one that was evaluated; nothing is stored.
        """
        best = model_entry(best_epoch, best_checkpoint, bundle)
        if sha256 not in (None, best["sha256"]):
            raise TrackingError(
                f"{best_checkpoint} has the SHA-256 {best['sha256'][:12]}, that of the evaluated "
                f"model is {str(sha256)[:12]}: another process wrote to it; nothing was registered"
            )
        tags = {"best.epoch": str(best_epoch)}
        with self._cost:
            if bundle or best_epoch not in self._stored:
                self._store_model(best)
            if bundle:
                self._send(text_model_entry(best))
                tags[BUNDLE] = best["bundle_sha256"]
            if self._last is not None and self._last[0] in self._stored:
                self._last[1].unlink(missing_ok=True)
            elif self._last is not None:
                self._store_model(model_entry(*self._last, delete_checkpoint=True))
            self._last = None
            self._send({"op": "log", "tags": tags})

    def register(
        self, epoch: int, name: str = MODEL_NAME, *, alias_anyway: bool = False
    ) -> ModelVersion | None:
        """Register the model that was stored of an epoch; `move_candidate` decides on its alias.

        Call it after everything that its version is to show was logged. It waits for the store as
        long as `Sender.wait` says.

        Returns:
            The version; None if the registration still waits in the offline queue. Then
            `session.replay` registers the model.
        """
        entry = register_entry(epoch, self._stored[epoch], name, alias_anyway=alias_anyway)
        answer = self._send(entry)
        self.flush()
        version: ModelVersion | None = answer.result() if answer.done() else None
        return version

    def flush(self, seconds: float = math.inf) -> bool:
        """Wait until the store has taken all, within `Sender.wait`'s limits; returns whether."""
        with self._cost:
            return self._sender.wait(seconds)

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
    ) -> None:
        """Log a finished run nested under this one.

        Args:
            name: the run's name.
            params: the settings that it was made with.
            numbers: as in `log_results`.
            tags: further tags.
            history: epochs, each logged at its own step.
            files: copied into the run's artifacts.
        """
        metrics, notes = self._entries(numbers, 0, lambda name: None, self._started)
        for record in history:
            metrics += self._entries(
                epoch_numbers(record), record.epoch, lambda name: None, record.time
            )[0]
        self._children[name] += 1
        operation = {
            "op": "child",
            "id": self._child_id(name),
            "name": name,
            "time": self._started,
            "params": {key: str(value) for key, value in params.items()},
            "metrics": metrics,
            "tags": {**(tags or {}), **notes},
            "files": [str(path.resolve()) for path in files],
        }
        self._send(operation)

    def _child_id(self, name: str) -> str:
        """The same again where a run is resumed, so that a child is made once."""
        return uuid.uuid5(uuid.UUID(self.run_id), f"{name} {self._children[name]}").hex

    def log_cost(self) -> dict[str, float]:
        """Log and return the time that tracking has cost so far, see `metrics.Cost.numbers`."""
        cost = self._cost.numbers(self._sender.cpu_seconds)
        self._log(*self._entries(cost, 0, lambda name: None))
        return cost

    def end(self, status: str, reason: str = "") -> None:
        """End the run; what was not sent in time stays in the offline queue, and a hint is printed.

        Waits as `Sender.wait` says, and a few seconds only for a run that was killed.
        """
        left = 0
        try:
            leave_active_run(self.run_id)
            if reason:
                self._send({"op": "log", "tags": {ENDED_REASON: reason}})
            self._send({"op": "end", "status": status, "time": now()})
            self.flush(sender.KILLED_SECONDS if status == "KILLED" else math.inf)
        except QueueError as error:
            print(f"{error}. The run ends without what was to be logged last.")
            end_run(self.run_id, status)
        finally:
            left = self._sender.close()
            if left:
                print(
                    f"The tracking store {self.store} did not take {left} operations. When it "
                    f"answers:\n  ocp-mamba runs replay {self.queue_path}"
                )

    def abandon(self) -> None:
        """Leave the run to another process, which logs again what was not sent."""
        self._sender.discard()

    def _send(self, operation: Operation) -> Future[Any]:
        with self._cost:
            shown = {k: redact_all(v) for k, v in operation.items() if k in SHOWN}
            return self._sender.send({**operation, **shown, "run_id": self.run_id})

    def _entries(
        self, numbers: Numbers, step: int, split_of: Callable[[str], str | None], time: int = 0
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """As `metrics.entries`, with the data of the split that ``split_of`` names for a metric."""

        def computed_on(name: str) -> tuple[str, str] | None:
            source = self._inputs.get(split_of(name) or "")
            return source.identity if source else None

        return entries(numbers, step, computed_on, time)

    def _log(
        self, metrics: list[dict[str, Any]], tags: dict[str, str], epoch: int | None = None
    ) -> None:
        """Send metrics and tags, without the metrics that a resumed run holds already."""
        new = [m for m in metrics if (m["key"], m["step"]) not in self._held]
        self._send({"op": "log", "epoch": epoch, "metrics": new, "tags": tags})

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

    def _store_model(self, operation: Operation) -> None:
        self._stored[operation["epoch"]] = operation["sha256"]
        self._send(operation)
