"""`ocp-mamba data build`: a dataset file out of an ontology or of chain files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from ocp_mamba.cli.data.sources import SEQUENCES, SIBLINGS, Asked, open_source
from ocp_mamba.cli.options import InputError, listed
from ocp_mamba.data.build.builder import build_dataset, usable_chains
from ocp_mamba.data.build.chains import NAME, TEXT_FORMS
from ocp_mamba.data.build.wordnet_relations import RELATIONS
from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder
from ocp_mamba.errors import DatasetError, EncoderError

FILE = click.Path(path_type=Path)


class _Names(click.ParamType):
    """Different names with commas between them."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        names = tuple(word.strip() for word in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name", param, ctx)
        if len(set(names)) < len(names):
            self.fail(f"{value!r} names a relation twice", param, ctx)
        return names


@click.command(
    epilog=f"""
    \b
    Examples:
      ocp-mamba data build --wordnet /usr/share/wordnet --out ocp_training_9k.npz \\
        --encoder sentence-transformers/all-mpnet-base-v2
      ocp-mamba data build --wordnet /usr/share/wordnet --relations all --out relations.npz \\
        --encoder sentence-transformers/all-mpnet-base-v2
      ocp-mamba data build --obo go-basic.obo --sequences 6000 --out go.npz \\
        --encoder sentence-transformers/all-mpnet-base-v2
      ocp-mamba data build --obo go-basic.obo --relations is_a,part_of --text name+definition \\
        --encoder sentence-transformers/all-mpnet-base-v2 --out go.npz
      ocp-mamba data build --triples train.tsv --texts entity2text.txt --relation _hypernym \\
        --encoder sentence-transformers/all-mpnet-base-v2 --out graph.npz

    \b
    Relations of --wordnet, and their names in the dataset:
{listed(chr(10).join(f"{key:<10} {name}" for key, (_, name) in RELATIONS.items()))}    """
)
@click.option(
    "--wordnet",
    type=FILE,
    help="WordNet folder (data.noun, data.verb): chains are hypernym paths, leaf to root.",
)
@click.option("--obo", type=FILE, help="Ontology in OBO format: chains are paths, leaf to root.")
@click.option("--owl", type=FILE, help="Ontology in OWL, as RDF/XML: paths from leaf to root.")
@click.option(
    "--triples",
    multiple=True,
    type=FILE,
    help="Knowledge graph: lines of head, relation and tail with tabs between them, the narrower "
    "first; give it again for more. Needs --texts and --relation.",
)
@click.option("--texts", type=FILE, help="[--triples] Lines of an id, a tab, `name, definition`.")
@click.option(
    "--chains",
    multiple=True,
    type=FILE,
    help='Chain file, one {"chain_id", "concepts", "source"} a line, with "relations" and '
    '"confidences" of the steps where they are known; give it again for more.',
)
@click.option(
    "--relations",
    "--relation",
    "relations",
    type=_Names(),
    metavar="[all|NAME,NAME,…]",
    help="[--wordnet] Chains are walks by these relations (below), each step with its relation and "
    "a confidence, in the place of hypernym paths. [--obo, --owl, --triples] Relations to follow, "
    "each from the narrower to the wider: is_a if not given, such as is_a,part_of.",
)
@click.option(
    "--text",
    type=click.Choice(TEXT_FORMS),
    help=f"What is encoded for a concept; {NAME} if not given. Not for --chains.",
)
@click.option("--encoder", required=True, help="sentence-transformers name or folder (768-D).")
@click.option("--encoder-name", help="Public name of the encoder, if --encoder is a folder.")
@click.option("--out", required=True, type=FILE, help="The .npz to write.")
@click.option(
    "--sequences",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Number of sequences to draw chains for; {SEQUENCES} for --wordnet and all for the other "
    "ontologies if not given. Not for --chains.",
)
@click.option(
    "--siblings",
    type=click.IntRange(min=1),
    metavar="N",
    help="Chains drawn together that differ in the leaf only: more of them, fewer concepts; "
    f"{SIBLINGS} if not given. Goes with --sequences.",
)
@click.option(
    "--paths-per-leaf",
    type=click.IntRange(min=1, max=100),
    metavar="N",
    help="[--obo, --owl, --triples] At most so many paths begin at a leaf, where terms have "
    "several parents; 1 if not given.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True
)
@click.option("--licence", help="Licence of the chains, kept in the file. Known for --wordnet.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--device", help="Device of the encoder, such as cpu or cuda.")
def build(
    encoder: str,
    encoder_name: str | None,
    out: Path,
    dtype: str,
    licence: str | None,
    batch_size: int,
    device: str | None,
    **asked: Any,
) -> None:
    """Build a dataset file from an ontology, a knowledge graph or chain files.

    What is irregular in an ontology (cycles, several parents or roots, obsolete terms, missing or
    shared names) is reported and kept in the file. The vectors so far are kept beside --out, so
    that the same command goes on after a stop.
    """
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist")
    try:
        source = open_source(Asked(**asked), click.echo)
        usable_chains(source.chains)
        loaded = SentenceTransformerEncoder(
            encoder, name=encoder_name, batch_size=batch_size, device=device
        )
        cache_dir = out.with_name(f"{out.name}.encoding")
        dataset, report = build_dataset(
            source.chains,
            loaded,
            seed=asked["seed"],
            licence=licence or source.licence,
            cache_dir=cache_dir,
            dtype=dtype,
            facts=source.facts,
        )
        dataset.save(out)
    except (DatasetError, EncoderError, OSError) as error:
        raise InputError(str(error)) from error
    shutil.rmtree(cache_dir)
    click.echo(report.to_markdown())
    click.echo(f"\nWrote {out}, {out.stat().st_size / 1e6:.1f} MB")
