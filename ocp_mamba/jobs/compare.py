"""Read evaluated runs back from the tracking store, to compare them."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ocp_mamba.data.npz import Npz
from ocp_mamba.errors import CompareError, first_line
from ocp_mamba.reports.ranking import Candidate
from ocp_mamba.system.parsing import json_object, read_text

RUN_ID = re.compile(r"[0-9a-f]{32}")
FIGURES, NUMBERS = "reports/evaluation.json", "reports/per_example.npz"
LISTED = 5
MAX_FIGURES_BYTES = 1 << 24


def load_candidates(words: Sequence[str]) -> list[Candidate]:
    """Return the evaluated runs that the words name, from the store in use.

    Args:
        words: run ids or run names, of any experiment.

    Raises:
        CompareError: a run does not exist, its name is another's too, it is named twice, or it has
            no evaluation.
    """
    runs = [find_run(word) for word in words]
    for run_id, times in Counter(run.info.run_id for run in runs).items():
        if times > 1:
            raise CompareError(f"run {run_id} is named {times} times")
    names = Counter(run.info.run_name for run in runs)
    return [_candidate(run, alone=names[run.info.run_name] == 1) for run in runs]


def find_run(word: str) -> Run:
    """Return the run with this id or this name.

    Raises:
        CompareError: there is none, or there are several of this name.
    """
    if RUN_ID.fullmatch(word):
        try:
            return mlflow.get_run(word)
        except MlflowException as error:
            raise CompareError(f"run {word}: {first_line(error)}") from error
    if "'" in word and '"' in word:
        raise CompareError(f"run {word}: a name with both kinds of quotes; give the run's id")
    quote = '"' if "'" in word else "'"
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"attributes.run_name = {quote}{word}{quote}",
        output_format="list",
    )
    if not found:
        raise CompareError(f"no run is named {word!r} in {mlflow.get_tracking_uri()}")
    if len(found) > 1:
        ids = ", ".join(run.info.run_id for run in found[:LISTED])
        raise CompareError(f"{len(found)} runs are named {word!r}; give an id: {ids}")
    return found[0]


def _candidate(run: Run, *, alone: bool) -> Candidate:
    run_id, name = run.info.run_id, run.info.run_name
    with tempfile.TemporaryDirectory() as scratch:
        try:
            figures, numbers = (
                Path(
                    mlflow.artifacts.download_artifacts(
                        run_id=run_id, artifact_path=path, dst_path=scratch
                    )
                )
                for path in (FIGURES, NUMBERS)
            )
            text = read_text(figures, CompareError, "artifact", MAX_FIGURES_BYTES)
            evaluation = json_object(text, CompareError, f"artifact {FIGURES}")
            file = Npz(numbers)
            per_example = {key: file.array(key) for key in file.keys}
        except (MlflowException, OSError, ValueError) as error:
            raise CompareError(
                f"run {name} ({run_id}) has no evaluation to compare, {FIGURES} and {NUMBERS}: "
                f"{first_line(error)}. Evaluate its model: ocp-mamba evaluate --model … --data …"
            ) from error
    return Candidate(run_id, name if alone else f"{name} ({run_id[:8]})", evaluation, per_example)
