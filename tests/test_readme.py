"""What the README tells a person to type exists, and its figures come from a run."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from ocp_mamba.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line for line in SHELL.splitlines() if line.startswith("ocp-mamba ")]
PASTE = runpy.run_path(str(ROOT / "scripts" / "paste_run.py"))


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_is_one_that_the_program_takes(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    context: click.Context = click.Context(main)
    command: click.Command = main
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        context, command = click.Context(found, parent=context, info_name=name), found
    command.make_context(command.name, words, parent=context)


def test_each_make_target_exists() -> None:
    targets = set(re.findall(r"^make ([a-z-]+)", SHELL, re.MULTILINE))
    assert {"run", "test", "ui", "serve"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_ci_runs_the_test_command_as_it_stands_here() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in SHELL.splitlines()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_each_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_figures_were_pasted_from_a_run() -> None:
    pasted = README.split(PASTE["BEGIN"])[1].split(PASTE["END"])[0]
    for expected in ("next_vec_cosine", "beats_baselines_p1", "nearest_neighbour", "version 1"):
        assert expected in pasted


def test_pasting_keeps_what_a_person_reads_and_no_machine_path() -> None:
    log = (
        "pip noise\nEvaluating the baselines on 9 validation sequences\nridge 0.8\n"
        "2026/01/01 00:00:00 INFO mlflow: noise\n\r epoch 1/3: 50%|##|\n"
        "model file   /data/me/project/outputs/model.pt\n"
        "open the UI  mlflow ui --backend-store-uri sqlite:////data/me/mlflow.db --port 5000\n"
        "then look at http://127.0.0.1:5000/#/x\nmore noise\n"
    )
    assert PASTE["shown"](log) == (
        "Evaluating the baselines on 9 validation sequences\nridge 0.8\n"
        "model file   outputs/model.pt\n"
        "open the UI  mlflow ui --backend-store-uri sqlite:///mlflow.db --port 5000\n"
        "then look at http://127.0.0.1:5000/#/x"
    )
    with pytest.raises(SystemExit, match="not the output of a whole"):
        PASTE["shown"]("make: *** error\n")
