import json
from dataclasses import replace
from pathlib import Path

import pytest

from ocp_mamba.report import epoch_table, plot_cosine, plot_losses, result_table
from ocp_mamba.train import EpochRecord

FIRST = EpochRecord(
    epoch=1,
    losses={"cosine": 0.9, "total": 1.1, "grad_norm": 7.0},
    lr=0.001,
    seconds=2.0,
    examples_per_second=50.0,
    val={"next_vec_cosine": 0.31, "retrieval_p1": 0.05},
    improvement_trend=None,
    is_best=True,
    is_last=False,
)
HISTORY = [
    FIRST,
    replace(FIRST, epoch=2, val={"next_vec_cosine": 0.52}, improvement_trend=0.21),
    replace(FIRST, epoch=3, val={"next_vec_cosine": 0.50}, improvement_trend=0.1, is_best=False),
]
PNG = b"\x89PNG\r\n\x1a\n"


def test_cosine_plot_comes_with_its_numbers(tmp_path: Path) -> None:
    baselines = {"persistence": 0.4, "ridge": 0.45}
    image, data = plot_cosine(HISTORY, baselines, tmp_path / "new" / "cosine.png")
    assert image.read_bytes().startswith(PNG)
    assert json.loads(data.read_text()) == {
        "epoch": [1, 2, 3],
        "val_next_vec_cosine": [0.31, 0.52, 0.50],
        "baselines": baselines,
    }


def test_plot_draws_the_model_and_every_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: drawn.append(self))
    plot_cosine(HISTORY, {"persistence": 0.4, "ridge": 0.45}, tmp_path / "c.png")
    (axes,) = drawn[0].axes
    assert [line.get_label() for line in axes.lines] == ["model", "persistence", "ridge"]
    assert list(axes.lines[0].get_ydata()) == [0.31, 0.52, 0.50]
    assert [list(line.get_ydata()) for line in axes.lines[1:]] == [[0.4, 0.4], [0.45, 0.45]]
    assert [t.get_text() for t in axes.texts] == ["persistence 0.400", "ridge 0.450"]


def test_loss_plot_has_every_term_but_the_gradient(tmp_path: Path) -> None:
    image, data = plot_losses(HISTORY, tmp_path / "loss.png")
    assert image.read_bytes().startswith(PNG)
    assert json.loads(data.read_text())["losses"] == {"cosine": [0.9] * 3, "total": [1.1] * 3}


def test_epoch_table_marks_the_best() -> None:
    lines = epoch_table(HISTORY).splitlines()
    assert lines[2].split() == ["1", "0.3100", "0.0500", "-", "1.1000", "2.0"]
    assert lines[3].split() == ["2*", "0.5200", "-", "+0.2100", "1.1000", "2.0"]
    assert lines[4].split()[0] == "3"


def test_result_table_shows_intervals_gates_and_what_was_not_run() -> None:
    numbers = {
        "next_vec_cosine": 0.7,
        "interval/next_vec_cosine_low": 0.69,
        "interval/next_vec_cosine_high": 0.71,
    }
    text = result_table(numbers, {"train_time": "fail"}, ["next_vec_cosine", "echo"])
    rows = [line.split() for line in text.splitlines()]
    assert ["next_vec_cosine", "0.7000", "0.6900", "to", "0.7100"] in rows
    assert ["echo", "not-run"] in rows
    assert ["train_time", "fail"] in rows
