import base64
import json
from pathlib import Path

import numpy as np
import pytest
from data_maker import make_dataset
from evaluated import HISTORY, evaluate_baselines

from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.reports import plots
from ocp_mamba.stats import Figure

PNG = b"\x89PNG\r\n\x1a\n"
DATA = make_dataset(n_chains=150, n_concepts=60, seed=3)

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def evaluated() -> dict[str, Evaluation]:
    return evaluate_baselines(DATA)


def legend_of(axes) -> list[str]:
    return [t.get_text() for t in axes.get_legend().get_texts()]


def test_cosine_plot_comes_with_its_numbers(evaluated, tmp_path: Path) -> None:
    image, data = plots.plot_cosine(HISTORY, evaluated, tmp_path / "new" / "cosine.png")
    assert image.read_bytes().startswith(PNG)
    written = json.loads(data.read_text())
    assert written["epoch"] == [1, 2, 3]
    assert written["val_next_vec_cosine"] == [0.31, 0.52, 0.50]
    assert written["val_retrieval_p1"] == [0.05, None, None]
    for name, evaluation in evaluated.items():
        for metric in ("next_vec_cosine", "faiss_retrieval_p1"):
            assert written["baselines"][name][metric] == evaluation.figures[metric].value


def test_epochs_stand_against_every_baseline_with_its_value(evaluated) -> None:
    cosine, p1 = plots.epochs_figure(HISTORY, evaluated).axes
    for axes, metric in ((cosine, "next_vec_cosine"), (p1, "faiss_retrieval_p1")):
        texts = legend_of(axes)
        for name, evaluation in evaluated.items():
            assert f"{name}  {evaluation.figures[metric].value:.3f}" in texts
        values = [float(text.split("  ")[1].split()[0]) for text in texts]
        assert values == sorted(values, reverse=True)
    (model,) = [line for line in cosine.lines if "model" in line.get_label()]
    assert list(model.get_ydata()) == [0.31, 0.52, 0.50]
    (model,) = [line for line in p1.lines if "model" in line.get_label()]
    assert list(model.get_xdata()) == [1]


def test_the_legend_covers_no_line(evaluated) -> None:
    figure = plots.epochs_figure(HISTORY, evaluated)
    plots.as_png(figure)  # lays it out
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert legend.x0 >= axes.get_window_extent().x1
        assert legend.x1 <= figure.bbox.x1


def test_no_epochs_and_no_baselines_still_draw() -> None:
    assert plots.epochs_figure([], {}).axes[0].get_legend() is None


def test_loss_plot_has_every_term_but_the_gradient(tmp_path: Path) -> None:
    image, data = plots.plot_losses(HISTORY, tmp_path / "loss.png")
    assert image.read_bytes().startswith(PNG)
    assert json.loads(data.read_text())["losses"] == {"cosine": [0.9] * 3, "total": [1.1] * 3}


def test_strata_bars_are_the_figures(evaluated) -> None:
    cosine, _ = plots.strata_figure(evaluated).axes
    wanted = {
        evaluated[name].figures[prefix + "next_vec_cosine"].value
        for name in evaluated
        for prefix in plots.STRATA.values()
    } - {None}
    assert {bar.get_height() for bar in cosine.patches} == wanted
    assert legend_of(cosine) == list(evaluated)


def test_position_curve_leaves_out_what_is_rare(evaluated) -> None:
    positions = DATA.examples("val").position
    cosine, _ = plots.position_figure(evaluated, positions).axes
    drawn = list(cosine.lines[0].get_xdata())
    assert drawn == [k for k in np.unique(positions) if (positions == k).sum() >= 20]
    values = evaluated["persistence"].per_example["next_vec_cosine"]
    means = [values[positions == k].mean() for k in drawn]
    np.testing.assert_allclose(cosine.lines[0].get_ydata(), means)


def test_intervals_leave_out_what_was_not_run() -> None:
    rows = {"a": Figure(0.5, 0.4, 0.6, 9), "b": Figure(None, None, None, 0)}
    (axes,) = plots.intervals_figure(rows, "P@1").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a"]


def test_png_goes_inline(evaluated) -> None:
    head, _, body = plots.as_png(plots.strata_figure(evaluated)).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body).startswith(PNG)
