"""What a sweep shows: a progress line, and its parent run's metrics, tables and plots."""

from __future__ import annotations

import csv
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from tabulate import tabulate
from tqdm import tqdm

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.errors import first_line
from ocp_mamba.reports.plots import save_pyplot
from ocp_mamba.sweep.attempts import first_number
from ocp_mamba.sweep.defaults import OBJECTIVES
from ocp_mamba.sweep.study import N_TRIALS, RUN_ID, Sweep
from ocp_mamba.tracking.store import STORE_FAILURES
from ocp_mamba.tracking.tags import NOTE
from ocp_mamba.training.state import EpochResult

PLOT_SECONDS = 30.0
"""Plots of a running sweep are redrawn at most this often."""

LOG_SECONDS = 30.0
"""Where there is no terminal for a bar, a long trial's epoch is printed at most this often."""

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class SweepReport:
    """Keeps the parent run up to date; each worker does so after each of its trials."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        """Log the settings and the search space, which do not change."""
        self._sweep, self._folder = sweep, folder
        self._drawn = -PLOT_SECONDS
        folder.mkdir(parents=True, exist_ok=True)
        settings = sweep.settings
        sweep.parent.log(
            params={
                "study": sweep.study.study_name,
                "storage": sweep.storage.shown,
                "objectives": ", ".join(settings.objectives),
                "pruner": settings.pruner,
                "sampler": "tpe, multivariate, constant liar",
                "trial_seconds": settings.trial_seconds,
                **{f"space.{k}": v for k, v in sweep.space.distributions.items()},
                **{f"model.{k}": v for k, v in asdict(settings.model).items()},
                **{f"train.{k}": v for k, v in asdict(settings.train).items()},
            }
        )
        space = folder / "search_space.yaml"
        space.write_text(sweep.space.text, encoding="utf-8")
        sweep.parent.log_artifact(space)

    def refresh(self, *, now: bool = False) -> None:
        """Log the counts and the best trial; tables and plots too, if ``now`` or not recently."""
        try:
            self._log_numbers()
            if now or time.monotonic() - self._drawn > PLOT_SECONDS:
                self._log_files()
                self._drawn = time.monotonic()
        except STORE_FAILURES as error:
            warnings.warn(
                f"tracking store {self._sweep.parent.store}: {first_line(error)}; the sweep goes "
                "on, its run is brought up to date after the next trial",
                stacklevel=2,
            )

    def _log_numbers(self) -> None:
        sweep = self._sweep
        counts, best = sweep.counts(), sweep.best()
        metrics: dict[str, float] = {
            "trials_finished": counts.finished,
            "trials_pruned": counts.pruned,
            "trials_failed": counts.failed,
        }
        tags = {"sweep.n_trials": str(sweep.study.user_attrs[N_TRIALS])}
        if best is not None:
            metrics |= {
                f"best_val_{OBJECTIVES[k]}": v
                for k, v in zip(sweep.settings.objectives, best.values, strict=True)
            }
            tags |= {f"best.{k}": str(v) for k, v in best.params.items()}
            tags[NOTE] = best_beside_baselines(sweep, best)
            tags |= {"best.trial": str(first_number(best)), "best.run": best.user_attrs[RUN_ID]}
            if len(best.values) > 1:
                tags["best.of"] = f"{sweep.settings.objectives[0]}; see pareto_front.png"
            metrics |= {
                f"best_minus_baseline_val_{OBJECTIVES[k]}": v - max(_baseline_values(sweep, k))
                for k, v in zip(sweep.settings.objectives, best.values, strict=True)
                if _baseline_values(sweep, k)
            }
        sweep.parent.log(metrics=metrics, tags=tags, step=counts.done)

    def _log_files(self) -> None:
        sweep, parent = self._sweep, self._sweep.parent
        parent.log_artifact(write_table(sweep, self._folder / "trials.csv"))
        best = sweep.best()
        if best is not None:
            path = self._folder / "best.toml"
            path.write_text(as_toml(*sweep.configs(best)), encoding="utf-8")
            parent.log_artifact(path)
        drawn, missing = draw(sweep, self._folder)
        for path in drawn:
            parent.log_artifact(path, "plots")
        parent.log(
            tags={f"plot.{p.stem}": "drawn" for p in drawn}
            | {f"plot.{name}": f"not-run: {why}" for name, why in missing.items()}
        )


def _baseline_values(sweep: Sweep, objective: str) -> list[float]:
    return [found[objective] for found in sweep.baselines().values()]


def best_beside_baselines(sweep: Sweep, best: FrozenTrial) -> str:
    """Return the best trial and each baseline as a table, with a verdict above it."""
    objectives = sweep.settings.objectives
    rows = [[f"trial {first_number(best)}, the best", *best.values]]
    rows += [[name, *(found[k] for k in objectives)] for name, found in sweep.baselines().items()]
    behind = {k: names for k, names in sweep.ahead_of(best).items() if names}
    verdict = "; ".join(f"{k}: not above {', '.join(names)}" for k, names in behind.items())
    table = tabulate(rows, ["on the val split", *objectives], tablefmt="github", floatfmt=".4f")
    return f"{verdict or 'The best trial is above every baseline.'}\n\n{table}"


def write_table(sweep: Sweep, path: Path) -> Path:
    """Write a CSV with one row for each trial, however many attempts it took."""
    rows = [_row(sweep, t) for t in _latest(sweep)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _latest(sweep: Sweep) -> list[FrozenTrial]:
    """The last attempt at each trial, in the order of their first numbers."""
    last = {first_number(t): t for t in sweep.trials()}
    return [last[number] for number in sorted(last)]


def _row(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    finished = trial.state == TrialState.COMPLETE
    values = trial.values if finished and trial.values else [""] * len(sweep.settings.objectives)
    seconds = trial.duration.total_seconds() if trial.duration else ""
    return {
        "trial": first_number(trial),
        "state": STATES[trial.state],
        **dict(zip(sweep.settings.objectives, values, strict=True)),
        "epochs": max(trial.intermediate_values, default=""),
        "seconds": seconds,
        **trial.params,
        "run_id": trial.user_attrs.get(RUN_ID, ""),
    }


def as_toml(model: ModelConfig, train: TrainConfig) -> str:
    """Return two configs as a file for ``ocp-mamba train --config``."""

    def table(name: str, config: Any) -> str:
        return "\n".join(
            [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in asdict(config).items())]
        )

    return table("model", model) + "\n\n" + table("train", train) + "\n"


def draw(sweep: Sweep, folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Draw Optuna's plots of a study; returns the files, and why the others cannot be drawn yet."""
    import optuna.visualization.matplotlib as drawing

    finished = [t for t in sweep.trials() if t.state == TrialState.COMPLETE]
    objectives = sweep.settings.objectives
    several = len(objectives) > 1
    columns = len(sweep.space.distributions)
    sizes = {
        "slice": (max(8.0, 3.0 * columns), 4.0),
        "parallel_coordinate": (max(9.0, 2.2 * columns), 5.0),
    }
    each: dict[str, Callable[..., Any]] = {
        "history": drawing.plot_optimization_history,
        "importances": drawing.plot_param_importances,
        "parallel_coordinate": drawing.plot_parallel_coordinate,
        "slice": drawing.plot_slice,
    }
    plots: dict[str, Callable[[], Any]] = {}
    for number, objective in enumerate(objectives):
        study = _alone(finished, number) if several else sweep.study
        named = {"target_name": f"{objective}, validation"}
        for name, plot in each.items():
            plots[f"{name}_{objective}" if several else name] = _bind(plot, study, named)
    if several:
        axes = {"target_names": [f"{o}, validation" for o in objectives]}
        plots["pareto_front"] = _bind(drawing.plot_pareto_front, sweep.study, axes)
    else:
        plots["epochs"] = _bind(drawing.plot_intermediate_values, sweep.study, {})
    drawn, missing = [], {}
    for name, plot in plots.items():
        if len(finished) < 2:
            missing[name] = f"{len(finished)} finished trials, wanted 2"
            continue
        size = next((s for n, s in sizes.items() if name.startswith(n)), (8.0, 4.5))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                drawn.append(save_pyplot(plot(), folder / f"{name}.png", *size))
            except (ValueError, RuntimeError) as error:
                missing[name] = first_line(error)
    return drawn, missing


def _alone(finished: Sequence[FrozenTrial], objective: int) -> optuna.Study:
    """A study of one objective among several, so that Optuna's plots know that more is better."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.create_trial(
            params=t.params, distributions=t.distributions, value=t.values[objective]
        )
        for t in finished
    )
    return study


def _bind(
    plot: Callable[..., Any], study: optuna.Study, options: Mapping[str, Any]
) -> Callable[[], Any]:
    return lambda: plot(study, **options)


class Progress:
    """A line for each trial that this worker ends, and on a terminal a bar over all trials."""

    def __init__(self, sweep: Sweep, log: Callable[[str], None], *, enabled: bool) -> None:
        """Start the bar at the number of trials that the study has already."""
        self._sweep, self._log = sweep, log
        self._done = sweep.counts().done
        self._began = time.monotonic()
        self._spoke = self._began
        self._enabled = enabled
        self._said_waiting = False
        self._bar = tqdm(
            total=sweep.n_trials,
            initial=self._done,
            unit="trial",
            disable=None if enabled else True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def epoch(self, number: int, result: EpochResult) -> None:
        """Show the epoch of the running trial."""
        cosine = result.val["next_vec_cosine"]
        text = f"trial {number}, epoch {result.epoch}/{result.max_epochs}, cosine {cosine:.4f}"
        self._bar.set_description(text)
        silent = time.monotonic() - self._spoke
        if self._enabled and self._bar.disable and silent > LOG_SECONDS and not result.is_last:
            self._say(text)

    def ended(self, claimed: Trial, state: str, reason: str) -> None:
        """Print the state of a trial that has ended, the best so far and the time left."""
        sweep = self._sweep
        counts, wanted = sweep.counts(), sweep.n_trials
        trial = sweep.frozen(claimed)
        number = first_number(trial)
        if state == "finished":
            reason = self._values(trial)
        best = sweep.best()
        best_text = "no best"
        if best:
            best_text = (
                f"best {self._values(best)} (trial {first_number(best)}){self._beside(best)}"
            )
        parts = [f"trial {number:<3} {state:8} {reason}", best_text,
                 f"{counts.done} of {wanted}{self._left(counts.done, wanted)}"]  # fmt: skip
        self._say("  |  ".join(parts))
        self._bar.total = wanted
        self._bar.update(max(0, counts.done - self._bar.n))
        self._bar.set_postfix_str(best_text)

    def waiting(self, running: int) -> None:
        """Print once that other workers run the last trials."""
        if not self._said_waiting:
            self._say(f"waiting for the last {running} trials, which other workers run")
        self._said_waiting = True

    def out_of_time(self) -> None:
        """Print that the time limit ended this worker."""
        self._say("the time limit is over: no further trial is begun")

    def _values(self, trial: FrozenTrial) -> str:
        names = self._sweep.settings.objectives
        return " ".join(f"{k} {v:.4f}" for k, v in zip(names, trial.values, strict=True))

    def _beside(self, best: FrozenTrial) -> str:
        """The strongest baseline in the first objective, beside the best trial."""
        objective = self._sweep.settings.objectives[0]
        values = {n: found[objective] for n, found in self._sweep.baselines().items()}
        if not values:
            return ""
        name = max(values, key=values.__getitem__)
        words = "below" if best.values[0] < values[name] else "baseline"
        return f", {words} {name} {values[name]:.4f}"

    def _left(self, done: int, wanted: int) -> str:
        ended = done - self._done
        if ended <= 0 or done >= wanted:
            return ""
        minutes = (time.monotonic() - self._began) / ended * (wanted - done) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than 1 min left"

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        self._bar.clear()
        self._log(line)
        self._bar.refresh()
