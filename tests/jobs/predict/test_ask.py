from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from bundles import write_version
from click.testing import CliRunner
from command import run
from data_maker import make_dataset
from trainings import TINY

from ocp_mamba.cli.main import main
from ocp_mamba.config import override
from ocp_mamba.jobs.predict.open_version import open_model
from ocp_mamba.serving.bundle import CHECKPOINT, EVALUATION, MANIFEST
from ocp_mamba.serving.pyfunc import save_pyfunc
from ocp_mamba.tracking.registry import MODEL_NAME

DATA = make_dataset(60, 40)
WORDS = [str(word) for word in DATA.texts]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.pt`` and its bundle, the dataset as ``data.npz``, and an MLflow model of them."""
    folder = tmp_path_factory.mktemp("files")
    bundle = write_version(folder, DATA, TINY)
    DATA.save(folder / "data.npz")
    save_pyfunc(folder / "pyfunc", folder / CHECKPOINT, bundle)
    return folder


@pytest.fixture
def registered(store: str, files: Path, tmp_path: Path) -> Path:
    """The folder of version 1, a candidate."""
    folder = tmp_path / "source"
    shutil.copytree(files / "pyfunc", folder)
    client = mlflow.MlflowClient()
    client.create_registered_model(MODEL_NAME)
    client.create_model_version(MODEL_NAME, str(folder))
    client.set_registered_model_alias(MODEL_NAME, "candidate", "1")
    return folder


def asked(*words: Any) -> tuple[str, str]:
    """What `ocp-mamba ask` prints, and what it says beside it."""
    result = CliRunner().invoke(main, ["ask", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def best(files: Path, chain: list[str], **given: Any) -> dict[str, Any]:
    predictor = open_model(str(files / CHECKPOINT), DATA).text_predictor()
    return json.loads(json.dumps(predictor.predict([chain], **given)[0]))


def test_a_file_with_its_dataset_is_asked(files: Path) -> None:
    said, _ = asked(*WORDS[:2], "--model", files / CHECKPOINT, "--data", files / "data.npz")
    assert f"{WORDS[0]} → {WORDS[1]} → ?" in said
    for found in best(files, WORDS[:2])["steps"][0]["next"]:
        assert f"{found['concept']}" in said
        assert f"{found['score']:.3f}" in said


def test_steps_are_drawn_as_a_chain_with_what_else_might_come(files: Path) -> None:
    where = ("--model", files / CHECKPOINT, "--data", files / "data.npz")
    said, _ = asked(*WORDS[:2], *where, "--steps", 3, "--top-k", 2)
    steps = best(files, WORDS[:2], top_k=2, steps=3)["steps"]
    chain = [*WORDS[:2], *(step["next"][0]["concept"] for step in steps)]
    assert said.splitlines()[-1] == " → ".join(chain)
    assert all(step["next"][1]["concept"] in said for step in steps)
    alone, _ = asked(*WORDS[:2], *where, "--steps", 3, "--top-k", 1)
    assert "or" not in alone.splitlines()[4].split()


def test_without_a_champion_the_candidate_answers_and_says_so_aloud(
    registered: Path, files: Path
) -> None:
    said, beside = asked(*WORDS[:2], "--json")
    assert "NOTE: ocp-mamba-lvm has no champion yet. This is version 1, the candidate" in beside
    assert json.loads(said) == {
        "model": {"name": MODEL_NAME, "version": "1"},
        "predictions": [best(files, WORDS[:2])],
    }
    mlflow.MlflowClient().set_registered_model_alias(MODEL_NAME, "champion", "1")
    said, beside = asked(*WORDS[:2])
    assert beside == ""
    assert said.startswith("ocp-mamba-lvm version 1\n")


def test_a_version_whose_files_were_changed_is_refused(registered: Path) -> None:
    content = (registered / "artifacts" / CHECKPOINT).read_bytes()
    (registered / "artifacts" / CHECKPOINT).write_bytes(content + b"x")
    assert "weights-changed" in run("ask", *WORDS[:2], code=2)


def test_a_version_without_a_bundle_is_asked_with_a_dataset(registered: Path, files: Path) -> None:
    for name in (MANIFEST, EVALUATION):
        (registered / "artifacts" / name).unlink()
    assert "manifest-missing" in run("ask", *WORDS[:2], code=2)
    said, _ = asked(*WORDS[:2], "--data", files / "data.npz", "--json")
    assert json.loads(said)["predictions"] == [best(files, WORDS[:2])]


def test_an_empty_store_is_an_error_with_the_way_out(store: str) -> None:
    assert "train one (ocp-mamba train)" in run("ask", *WORDS[:2], code=2)
    assert "no version of ocp-mamba-lvm has the alias champion" in run(
        "ask", WORDS[0], "--model", "models:/ocp-mamba-lvm@champion", code=2
    )
    assert not mlflow.MlflowClient().search_registered_models()


def test_a_model_with_tmd_says_that_codes_are_missing_and_takes_them(tmp_path: Path) -> None:
    write_version(tmp_path, DATA, override(TINY, d_tmd=16))
    DATA.save(tmp_path / "data.npz")
    where = ("--model", tmp_path / CHECKPOINT, "--data", tmp_path / "data.npz", "--json")
    without, beside = asked(WORDS[0], *where)
    assert "NOTE: this model takes TMD codes, and none are given" in beside
    given, beside = asked(WORDS[0], *where, "--codes", "1,1,6")
    assert beside == ""
    assert given != without
    assert "three whole numbers as in 1,1,6" in run(
        "ask", WORDS[0], *where, "--codes", "1,1", code=2
    )
    assert "codes must be from 0 to" in run("ask", WORDS[0], *where, "--codes", "99,1,6", code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'CONCEPT...'"),
        (["concept é 4o"], "unknown text: concepts[0][0] 'concept é 4o' (nearest: 'concept é"),
        ([""], "a text of 1 to 1,000 characters is wanted"),
        ([WORDS[0], "--top-k", 0], "0 is not in the range x>=1"),
        ([WORDS[0], "--top-k", 41], "top_k is 41; a whole number from 1 to 40 is wanted"),
        ([WORDS[0], "--top-k", "many"], "'many' is not a valid integer"),
        ([WORDS[0], "--steps", 101], "101 is not in the range 1<=x<=100"),
        ([WORDS[0], "--topk", 3], "No such option '--topk'"),
    ],
)
def test_bad_input_is_one_clear_line(files: Path, words: list[Any], message: str) -> None:
    where = ("--model", files / CHECKPOINT, "--data", files / "data.npz")
    said = run("ask", *words, *where, code=2)
    assert message in said
    assert "Traceback" not in said


def test_a_file_needs_a_dataset_and_a_baseline_is_not_asked(files: Path) -> None:
    said = run("ask", WORDS[0], "--model", files / CHECKPOINT, code=2)
    assert "has no bank of concepts" in said
    assert "--data" in said
    assert "is wanted" in run("ask", WORDS[0], "--model", "baseline:ridge", code=2)
    assert "not found" in run("ask", WORDS[0], "--model", "nowhere.pt", code=2)
