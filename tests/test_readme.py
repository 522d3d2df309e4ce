"""What the pages tell a person to type exists, and their numbers come from a run."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ocp_mamba.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
PASTE = runpy.run_path(str(ROOT / "scripts" / "paste_run.py"))
PROGRAM = re.compile(r"^(?:ocp-mamba|(?:torchrun|python) .*-m ocp_mamba) ")
MOST_LINES = 150


def shell(page: str) -> list[str]:
    """The lines of a page's shell blocks, with continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[page], re.DOTALL)
    return "\n".join(blocks).replace("\\\n", " ").splitlines()


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command of the program with its words, such as ``data check``."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name)), found


TYPED = [(page, line) for page in PAGES for line in shell(page) if PROGRAM.match(line)]
COMMANDS = dict(commands(main))
LINKS = [
    (page, link)
    for page, text in PAGES.items()
    for link in sorted(set(re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)))
    if "://" not in link
]


@pytest.mark.parametrize(("page", "line"), TYPED)
def test_each_command_is_one_that_the_program_takes(page: str, line: str) -> None:
    words = shlex.split(PROGRAM.sub("", line), comments=True)
    words = words[: words.index("&")] if "&" in words else words
    context: click.Context = click.Context(main)
    command: click.Command = main
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        context, command = click.Context(found, parent=context, info_name=name), found
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_and_stands_in_a_page(name: str) -> None:
    shown = COMMANDS[name].get_help(click.Context(COMMANDS[name], info_name=name))
    assert f"ocp-mamba {name}" in " ".join(shown.split()), "its --help has no example"
    typed = name if " " in name else f"(ocp-mamba|ocp_mamba) {name}"
    assert any(re.search(rf"\b{typed}\b", text) for text in PAGES.values())


def test_each_make_target_exists() -> None:
    targets = {
        target
        for page in PAGES
        for line in shell(page)
        for target in re.findall(r"^make ([a-z-]+)", line)
    }
    assert {"run", "test", "ui", "serve"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_ci_runs_the_test_command_as_it_stands_here() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in shell("README.md")


def test_the_readme_can_be_read_to_the_end() -> None:
    assert len(README.splitlines()) < MOST_LINES
    for page in PAGES:
        assert page == "README.md" or f"({page})" in README, f"the README does not lead to {page}"


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_each_link_leads_somewhere(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


def test_what_a_run_printed_was_pasted() -> None:
    whole, part = (
        PAGES[page].split(PASTE["BEGIN"])[1].split(PASTE["END"])[0].strip()
        for page in ("docs/results.md", "README.md")
    )
    for expected in ("next_vec_cosine", "beats_baselines_p1", "nearest_neighbour", "version 1"):
        assert expected in whole
    lines = [line for line in part.splitlines() if line not in ("", "…")]
    assert set(lines) <= set(whole.splitlines())
    assert len(lines) < 25


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


def test_the_readme_has_the_telling_lines() -> None:
    said = """\
Evaluating the baselines on 9 validation sequences
predictor    cosine                P@1
-----------  --------------------  -----
ridge        0.851 [0.839, 0.862]  0.797

Training 22 parameters, bf16, compile on

epoch      val cosine
-------  ------------
1              0.8782
2*             0.9090
3              0.9002
4              0.9001

alarms in training: none

predictor    cosine                P@1
-----------  --------------------  -----
persistence  -0.100 [0.421, 0.443]  0.000
ridge        0.851 [0.839, 0.862]  0.797
context      0.432 [0.421, 0.443]  0.000
this model   0.909 [0.898, 0.918]  0.825
val split: 9 sequences

gate                verdict
------------------  ---------
not_collapsed       pass
beats_baselines_p1  fail

model file   outputs/model.pt
registered   ocp-mamba-lvm version 1
then look at http://127.0.0.1:5000/#/x"""
    assert (
        PASTE["telling"](said)
        == """\
Training 22 parameters, bf16, compile on

epoch      val cosine
-------  ------------
…
2*             0.9090
…
4              0.9001

predictor    cosine                P@1
-----------  --------------------  -----
…
ridge        0.851 [0.839, 0.862]  0.797
…
this model   0.909 [0.898, 0.918]  0.825
…
beats_baselines_p1  fail

registered   ocp-mamba-lvm version 1
then look at http://127.0.0.1:5000/#/x"""
    )
