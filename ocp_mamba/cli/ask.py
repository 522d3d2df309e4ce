"""`ocp-mamba ask`: type concepts, see which ones come next."""

from __future__ import annotations

import json
from typing import Any

import click

from ocp_mamba.cli.options import model_address, with_errors

TOKEN_VARIABLE = "OCP_MAMBA_SERVE_TOKEN"
ARROW = " → "


class Codes(click.ParamType):
    """Domain, task and modifier with commas between them."""

    name = "domain,task,modifier"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return three numbers."""
        words = [word.strip() for word in str(value).split(",")]
        if len(words) != 3 or not all(word.isdecimal() for word in words):
            self.fail(f"{value!r} found, three whole numbers as in 1,1,6 wanted", param, ctx)
        return [int(word) for word in words]


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba ask "sand tiger" shark elasmobranch
      ocp-mamba ask "sand tiger" shark --steps 4 --top-k 3
      ocp-mamba ask "sand tiger" shark --model outputs/model.pt --data ocp_training_9k.npz
      ocp-mamba ask "sand tiger" shark --server http://127.0.0.1:5001 --json
    """
)
@click.argument("concepts", nargs=-1, required=True, metavar="CONCEPT...")
@click.option("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a .pt file with "
              "--data; default models:/ocp-mamba-lvm@champion, else the candidate.")  # fmt: skip
@click.option("--data", help="Dataset file whose bank is used; a version has one of its own.")
@click.option("--server", metavar="URL", help="Ask a running `ocp-mamba serve` instead.")
@click.option("--token", envvar=TOKEN_VARIABLE, show_envvar=True, help="That the server wants.")
@click.option("--encoder", metavar="NAME_OR_FOLDER",
              help="Encodes texts that the bank lacks; they are refused without it.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True,
              help="Next concepts to show of each step.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Steps ahead; each one reads the best concept of the step before.")  # fmt: skip
@click.option("--codes", type=Codes(), help="TMD codes, for a model that takes them.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def ask(**flags: Any) -> None:
    """Show which concepts come next after a chain of concepts, and their scores.

    A concept of several words needs quotes. The score is the cosine of a concept's vector to the
    predicted one: 1 is the best.
    """

    def run() -> None:
        answer = _from_server(flags) if flags["server"] else _from_model(flags)
        click.echo(json.dumps(answer, ensure_ascii=False) if flags["as_json"] else shown(answer))

    with_errors(run)


def _from_server(flags: dict[str, Any]) -> dict[str, Any]:
    from ocp_mamba.jobs.predict.ask_server import ask_server

    for name in ("model", "data", "encoder"):
        if flags[name] is not None:
            raise click.UsageError(
                f"--{name} does not go with --server: the server has its own model"
            )
    return ask_server(
        flags["server"],
        flags["concepts"],
        top_k=flags["top_k"],
        steps=flags["steps"],
        codes=flags["codes"],
        token=flags["token"],
    )


def _from_model(flags: dict[str, Any]) -> dict[str, Any]:
    from ocp_mamba.jobs.predict.ask import AskJob, ask
    from ocp_mamba.system.paths import resolve_file

    data = flags["data"]
    job = AskJob(
        concepts=flags["concepts"],
        model=flags["model"] and model_address(flags["model"]),
        data=None if data is None else resolve_file(data),
        encoder=flags["encoder"],
        top_k=flags["top_k"],
        steps=flags["steps"],
        codes=flags["codes"],
    )
    return ask(job, lambda line: click.echo(line, err=True))


def shown(answer: dict[str, Any]) -> str:
    """Return an answer for a person: the model, the chain, and a table of what comes next."""
    from tabulate import tabulate

    [prediction], model = answer["predictions"], answer["model"]
    steps, chain = prediction["steps"], ARROW.join(prediction["concepts"])
    version = f" version {model['version']}" if model["version"] else ""
    head = f"{model['name']}{version}\n\n{chain}{ARROW}?\n"
    if len(steps) == 1:
        rows = [[n["concept"], n["score"]] for n in steps[0]["next"]]
        return head + "\n" + tabulate(rows, ["next concept", "score"], floatfmt=".3f")
    rows = [
        [number, step["next"][0]["concept"], step["next"][0]["score"], _others(step["next"][1:])]
        for number, step in enumerate(steps, start=1)
    ]
    headers = ["step", "next concept", "score", "or"]
    if not any(row[3] for row in rows):
        headers, rows = headers[:3], [row[:3] for row in rows]
    drawn = ARROW.join([chain, *(row[1] for row in rows)])
    return f"{head}\n{tabulate(rows, headers, floatfmt='.3f')}\n\n{drawn}"


def _others(found: list[dict[str, Any]]) -> str:
    """The concepts of a step that were not taken, with their scores."""
    return ", ".join(f"{n['concept']} {n['score']:.3f}" for n in found)
