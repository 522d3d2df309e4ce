"""The report and MLflow's views of it, as a browser shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import mlflow
import numpy as np
import pytest
from browser import HOW_TO_INSTALL, Browser, find_browser
from data_maker import make_dataset
from evaluated import HISTORY, evaluate_baselines
from PIL import Image
from servers import Server
from tracked import train_tracked

from ocp_mamba.config import ModelConfig
from ocp_mamba.jobs.artifacts import log_evaluation
from ocp_mamba.reports.evaluation_page import Report
from ocp_mamba.tracking import session
from ocp_mamba.tracking.charts import EXPERIMENT_NOTE
from ocp_mamba.tracking.store import ui_link

pytestmark = pytest.mark.skipif(find_browser() is None, reason=HOW_TO_INSTALL)

DATA = make_dataset(n_chains=150, n_concepts=60, seed=3)
NAMES = ("steady-crane", "swift-heron")
PLOT_BLUE = (0x1F, 0x4E, 0x9E)
SETTLE_SECONDS = 12


@dataclass(frozen=True)
class Tracked:
    """Two evaluated trainings on a server, and the page of the second."""

    server: str
    experiment_id: str
    run_ids: list[str]
    page: Path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = find_browser()
    assert program
    return Browser(program, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def tracked(
    drawn: None, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tracked]:
    folder = tmp_path_factory.mktemp("tracked")
    evaluated = evaluate_baselines(DATA)
    before, ids = mlflow.get_tracking_uri(), []
    for name, predictor in zip(NAMES, ("ridge", "nearest_neighbour"), strict=True):
        with session.track(
            DATA, "d.npz", output_dir=folder, experiment="screenshots", run_name=name,
            store=server.url, system_metrics=False,
        ) as run:  # fmt: skip
            run.compare_with({n: {"cosine": 0.1, "p1": 0.2} for n in evaluated})
            run.has_rows = False  # models are not what is looked at, and storing them takes long
            train_tracked(run, DATA, ModelConfig(d_model=32, n_layers=1, headdim=16),
                          folder / f"{name}.pt", epochs=2)  # fmt: skip
            others = {n: e for n, e in evaluated.items() if n != predictor}
            report = Report(
                f"Training run {name}", evaluated[predictor], DATA, others,
                gates={"no_leak": "pass"}, facts={"run": run.run_id}, history=HISTORY, warnings=[],
            )  # fmt: skip
            run.log_results(
                evaluated[predictor].headline(), report.gates, evaluated[predictor].tags()
            )
            if name == NAMES[-1]:
                page = log_evaluation(run, report, folder / run.run_id)
        ids.append(run.run_id)
    yield Tracked(server.url, run.experiment_id, ids, page)
    mlflow.set_tracking_uri(before)


def pixels(path: Path) -> np.ndarray:
    """The RGB pixels of a screenshot, int (height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def n_colours(shown: np.ndarray) -> int:
    return len(np.unique(shown @ (1 << 16, 1 << 8, 1)))


def test_the_report_shows_its_verdict_and_its_plots(
    tracked: Tracked, browser: Browser, tmp_path: Path
) -> None:
    image = tmp_path / "report.png"
    document = browser.load(tracked.page.as_uri(), image, "1200,5200")
    shown = pixels(image)
    assert shown.shape == (5200, 1200, 3)
    assert n_colours(shown) > 300
    drawn = (np.abs(shown - PLOT_BLUE).max(axis=2) < 8).nonzero()[0]
    assert len(drawn) > 5000, "the plots' blue is hardly there: no image was drawn"
    assert drawn.max() - drawn.min() > 1500, "one plot at most was drawn"
    assert f"<title>Training run {NAMES[1]}</title>" in document
    for said in ("Does it copy its input?", "Headline metrics", "persistence", tracked.run_ids[1]):
        assert said in document


def test_the_report_fits_a_phone(tracked: Tracked, browser: Browser, tmp_path: Path) -> None:
    """Nothing sticks out of the page: wide tables scroll within their box."""
    probe = tmp_path / "probe.html"
    script = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    page = tracked.page.read_text(encoding="utf-8").replace("</body>", script)
    probe.write_text(page, encoding="utf-8")
    found = re.search(r"<title>(\d+)</title>", browser.load(probe.as_uri(), size="500,900"))
    assert found
    assert int(found[1]) <= 500


def test_mlflow_charts_show_both_runs(tracked: Tracked, browser: Browser, tmp_path: Path) -> None:
    url, _ = ui_link(tracked.server, tracked.experiment_id)
    image = tmp_path / "charts.png"
    for longer in (
        1,
        3,
        9,
    ):  # charts are drawn when their numbers have come, later on a busy machine
        document = browser.load(url, image, settle_seconds=longer * SETTLE_SECONDS)
        if "2_baselines/cosine_persistence" in document:
            break
    assert n_colours(pixels(image)) > 300
    for said in (*NAMES, "screenshots"):
        assert said in document, said
    words = re.sub(r"(<[^>]*>)+", "|", document)
    sections = re.findall(r"\|([\w ]+)\|\(\d+\)\|Add chart", words)
    wanted = ["Epochs beside the baselines", "The best epoch", "Training"]
    assert sections[:3] == wanted, "the saved view says what stands first"
    for said in ("val_next_vec_cosine", "2_baselines/cosine_persistence", EXPERIMENT_NOTE[:40]):
        assert said in document, said


def test_mlflow_compares_the_runs_side_by_side(
    tracked: Tracked, browser: Browser, tmp_path: Path
) -> None:
    runs, experiments = json.dumps(tracked.run_ids), json.dumps([tracked.experiment_id])
    url = f"{tracked.server}/#/compare-runs?runs={quote(runs)}&experiments={quote(experiments)}"
    image = tmp_path / "compare.png"
    document = browser.load(url, image, settle_seconds=SETTLE_SECONDS)
    assert n_colours(pixels(image)) > 300
    for said in (*NAMES, *tracked.run_ids, "Comparing 2 Runs", "val_next_vec_cosine",
                 "1_epochs/val_cosine"):  # fmt: skip
        assert said in document, said
