"""Statistics of the requests, logged to an MLflow run in steps; never what was asked.

The requests' thread hands over vectors and scores and goes on. A thread of its own computes the
statistics and sends them. While the store does not answer, statistics are dropped, and counted.
"""

from __future__ import annotations

import logging
import queue
import threading
import time

import mlflow
import numpy as np

from ocp_mamba.errors import first_line
from ocp_mamba.service.batcher import BatchDone
from ocp_mamba.service.version import Version

STEP_SECONDS = 60.0
"""A step of the run holds the requests of this time."""

WAITING = 256
"""Batches that may wait for their statistics; further ones are dropped."""

MOST_ROWS = 512
"""Vectors of a step that are compared with the bank; the first ones count."""

log = logging.getLogger(__name__)


class Drift:
    """Logs a service's statistics to one run of an experiment.

    Attributes:
        dropped: batches without statistics, and steps that could not be logged.
    """

    def __init__(self, experiment: str, step_seconds: float = STEP_SECONDS) -> None:
        """Prepare; `start` begins to log.

        Args:
            experiment: in the store in use; made where it does not exist.
            step_seconds: the time that a step holds.
        """
        self.dropped = 0
        self._experiment, self._step_seconds = experiment, step_seconds
        self._queue: queue.Queue[BatchDone | None] = queue.Queue(WAITING)
        self._run_id: str | None = None
        self._step = 0
        self._thread = threading.Thread(target=self._work, name="drift", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Log what was seen and end the run; waits no longer than that."""
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def see(self, done: BatchDone) -> None:
        """Hand over a batch; takes no time, and drops it where too many wait."""
        try:
            self._queue.put_nowait(done)
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        ends, statistics = time.monotonic() + self._step_seconds, Statistics()
        going = True
        while going:
            try:
                done = self._queue.get(timeout=max(0.0, ends - time.monotonic()))
                going = done is not None
                if done is not None:
                    statistics.add(done)
            except queue.Empty:
                pass
            if (time.monotonic() >= ends or not going) and statistics.requests:
                self._log(statistics.metrics(), statistics.version)
                statistics = Statistics()
            if time.monotonic() >= ends:
                ends = time.monotonic() + self._step_seconds
        self._end()

    def _log(self, metrics: dict[str, float], version: Version) -> None:
        """Log one step; a store that fails costs this step."""
        try:
            client = mlflow.MlflowClient()
            if self._run_id is None:
                self._run_id = self._open(client, version)
            for name, value in metrics.items():
                client.log_metric(self._run_id, name, value, step=self._step, synchronous=True)
        except Exception as error:  # whatever the store raises, requests are not touched
            self.dropped += 1
            log.warning("statistics of the requests were dropped: %s", first_line(error))
        self._step += 1

    def _open(self, client: mlflow.MlflowClient, version: Version) -> str:
        found = client.get_experiment_by_name(self._experiment)
        place = found.experiment_id if found else client.create_experiment(self._experiment)
        tags = {"serving.model": version.name, "serving.version": version.version}
        run = client.create_run(place, tags=tags, run_name=f"serving {version.name}")
        run_id: str = run.info.run_id
        return run_id

    def _end(self) -> None:
        if self._run_id is None:
            return
        try:
            mlflow.MlflowClient().set_terminated(self._run_id)
        except Exception as error:
            log.warning("the run of the requests' statistics stays open: %s", first_line(error))


class Statistics:
    """The statistics of one step."""

    def __init__(self) -> None:
        """Begin with no request."""
        self.requests = self.chains = 0
        self.version: Version
        self._norms: list[np.ndarray] = []
        self._seconds: list[float] = []
        self._lengths: list[int] = []
        self._top: list[float] = []
        self._near: list[float] = []

    def add(self, done: BatchDone) -> None:
        """Count a batch."""
        self.version = version = done.answers[0].version
        self.requests += len(done.answers)
        self.chains += len(done.chains)
        self._seconds.append(done.waited + done.seconds)
        self._lengths += [len(chain.vectors) for chain in done.chains]
        self._norms += [chain.norms for chain in done.chains if chain.norms is not None]
        for answer in done.answers:
            if answer.scores is not None:
                self._top += answer.scores[:, 0, 0].tolist()
        room = MOST_ROWS - len(self._near)
        if version.text is not None and room > 0:
            last = np.stack([chain.vectors[-1] for chain in done.chains[:room]])
            self._near += version.text.index.search(last, 1)[0][:, 0].tolist()

    def metrics(self) -> dict[str, float]:
        """Return the step's numbers by their name; a number that nothing is known of is absent."""
        found: dict[str, float] = {"requests": self.requests, "chains": self.chains}
        norms = np.concatenate(self._norms) if self._norms else np.empty(0)
        for name, values in (
            ("chain_length", np.asarray(self._lengths)),
            ("vector_norm", norms),
            ("nearest_cosine", np.asarray(self._near)),
            ("top_score", np.asarray(self._top)),
            ("latency_seconds", np.asarray(self._seconds)),
        ):
            values = values[np.isfinite(values)]
            if len(values):
                low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
                found |= {f"{name}_p05": low, f"{name}_p50": middle, f"{name}_p95": high}
                found[f"{name}_mean"] = float(values.mean())
        return found
