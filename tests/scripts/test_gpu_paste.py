"""`scripts/gpu_check.py paste`: results of a GPU reach the pages, and those of a dry run never."""

from __future__ import annotations

import json

import pytest

from benchmarks import frame
from benchmarks.gpu import paste
from benchmarks.run import Run


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Empty pages, with the places that the real ones have."""
    performance, gpu = tmp_path / "performance.md", tmp_path / "gpu.md"
    for path, names in (
        (performance, (frame.SUMMARY, paste.NAME)),
        (gpu, (paste.STATUS, paste.GOALS)),
    ):
        path.write_text("".join(f"<!-- {n}: begin -->\nnever\n<!-- {n}: end -->\n" for n in names))
    monkeypatch.setattr(frame, "PAGE", performance)
    monkeypatch.setattr(frame, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paste, "PAGE", gpu)
    return performance, gpu


def results(folder, *, stand_in, card="NVIDIA H100 80GB HBM3", stages_=("environment", "training")):
    folder.mkdir(exist_ok=True)
    for name in stages_:
        found = Run(name, folder / f"{name}.json", quick=False, limit_s=60)
        found.extra = {"stand_in": stand_in, "card": card, "error": "", "ended": "well"}
        table = found.table(f"Table of {name}", [{"what": "x"}])
        found.fill(table.rows[0], {"ms": 0.75})
        found.reach(found.goal(f"Goal of {name}"), "0.75 ms", True)
    return folder


def test_results_of_a_gpu_are_pasted_with_card_and_date(pages, tmp_path):
    performance, gpu = pages
    paste.paste(results(tmp_path / "out", stand_in=False))
    for page in (performance, gpu):
        text = page.read_text()
        assert "NVIDIA H100 80GB HBM3" in text
        assert "UTC" in text
        assert "never" not in text
        assert "| Goal of training" in text
    text = performance.read_text()
    assert "**Table of training**" in text
    assert "quality: not-run" in text  # a stage without a result is no silence
    (kept,) = frame.RESULTS.glob("*/gpu.json")
    assert kept.parent.name.startswith("nvidia-h100")
    assert frame.read(kept)["complete"] is False


def test_a_dry_run_is_never_pasted(pages, tmp_path):
    before = [page.read_text() for page in pages]
    folder = results(tmp_path / "out", stand_in=True)
    with pytest.raises(SystemExit, match=r"environment.json, training.json are of a dry run"):
        paste.paste(folder)
    results(folder, stand_in=False, stages_=("training",))
    with pytest.raises(SystemExit, match=r"out: environment.json are of a dry run"):
        paste.paste(folder)
    unknown = frame.read(folder / "training.json")
    del unknown["stand_in"]
    (folder / "training.json").write_text(json.dumps(unknown))
    (folder / "environment.json").unlink()
    with pytest.raises(SystemExit, match=r"training.json are of a dry run"):
        paste.paste(folder)
    assert [page.read_text() for page in pages] == before
    assert not frame.RESULTS.exists()


def test_results_of_two_cards_or_none_are_refused(pages, tmp_path):
    folder = results(tmp_path / "out", stand_in=False)
    results(folder, stand_in=False, card="NVIDIA H200", stages_=("training",))
    with pytest.raises(SystemExit, match="not of one run: card"):
        paste.paste(folder)
    with pytest.raises(SystemExit, match="has no results"):
        paste.paste(tmp_path)


def test_the_real_pages_have_the_places():
    for name in (paste.STATUS, paste.GOALS):
        assert frame.between(paste.PAGE, paste.PAGE.read_text(encoding="utf-8"), name, "x")
    assert frame.between(frame.PAGE, frame.PAGE.read_text(encoding="utf-8"), paste.NAME, "x")
