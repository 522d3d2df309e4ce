"""The benchmark job: encode the texts, train the rows, rank all queries, write one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ocp_mamba.embeddings.tokens import TokenEncoder, TransformerTokens, encode_tokens
from ocp_mamba.jobs.artifacts import log_texts
from ocp_mamba.jobs.benchmark.trained import Benchmark, Trained, get_trained
from ocp_mamba.jobs.common import Log
from ocp_mamba.link_prediction import simple
from ocp_mamba.link_prediction.candidates import candidates_of
from ocp_mamba.link_prediction.graph import read_graph
from ocp_mamba.link_prediction.paths import walks_of
from ocp_mamba.link_prediction.queries import Queries, queries_of
from ocp_mamba.link_prediction.ranking import MASKS, METRICS, Ranks, Scorer, figure, rank
from ocp_mamba.link_prediction.rows import (
    ALL_ROWS,
    BASELINE,
    MOST_COMMON,
    PUBLISHED,
    RIDGE,
    ROWS,
    SIMPLE,
    VOTES,
    Row,
)
from ocp_mamba.link_prediction.training import Epoch
from ocp_mamba.link_prediction.vectors import TextVectors, pool
from ocp_mamba.reports.link_table import LinkTable, RankedRow, to_dict, to_markdown
from ocp_mamba.tracking.dataset_input import Described
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.session import EXPERIMENT, track
from ocp_mamba.training.history import EpochRecord

NAME = "wn18rr"


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob:
    """What the benchmark is started with.

    Attributes:
        folder: WN18RR's files.
        output: folder of the table and of the trained rows.
        cache: folder of the token vectors.
        encoder: folder or name of a sentence-transformers model.
        models: names of the rows to run, of `ALL_ROWS`; the others are "not-run".
        seeds: of the trained rows.
        split: dev or test; whatever it is, dev alone chooses.
        experiment: of the MLflow run.
        rows: the trained rows by name.
        progress: show progress bars.
    """

    folder: Path
    output: Path
    cache: Path
    encoder: str
    models: tuple[str, ...] = ALL_ROWS
    seeds: tuple[int, ...] = (0, 1, 2)
    split: str = "dev"
    experiment: str = EXPERIMENT
    rows: Mapping[str, Row] = field(default_factory=lambda: ROWS)
    progress: bool = True


def run_wn18rr(
    job: BenchmarkJob, log: Log, load: Callable[[str], TokenEncoder] = TransformerTokens
) -> LinkTable:
    """Run the rows on the queries of the split, track them and write the table.

    The table is written after each row, so an interrupted job leaves what it has; rows that were
    trained before with the same settings are read from their files.

    Args:
        job: what to run.
        log: prints a line for a person.
        load: makes the encoder of its name.

    Raises:
        DatasetError: the folder lacks a file or a file has a fault.
        EncoderError: the encoder cannot be loaded or the cache is damaged.
        TrackingError: the tracking store cannot be used.
    """
    benchmark = _open(job, log, load)
    queries = benchmark.dev if job.split == "dev" else queries_of(benchmark.graph, job.split)
    if job.split == "test":
        log("TEST split: look once, choose nothing by it; the run is tagged test_split_evaluated")
    log(f"{len(queries):,} queries of {job.split}, among {benchmark.graph.n_entities:,} entities")
    with track(
        Described(benchmark.graph.digest, {"encoder": benchmark.vectors.encoder}),
        job.folder,
        output_dir=job.output,
        experiment=job.experiment,
        run_name=f"benchmark {NAME} {job.split}",
        params={
            "benchmark": NAME,
            "models": ",".join(job.models),
            "train.seed": ",".join(map(str, job.seeds)),
            "evaluated.split": job.split,
            "queries": len(queries),
        },
        tags={"kind": "benchmark", "test_split_evaluated": str(job.split == "test").lower()},
        inputs={},
        system_metrics=False,
    ) as run:
        table = _Rows(job, benchmark, queries, run, log).run()
        run.log_results(
            {
                f"{row.name}.{mask}.{metric}": figure(row.array(mask), metric).value
                for row in table.ran
                for mask in MASKS
                for metric in METRICS
            },
            split=job.split,
        )
        log(f"\n{to_markdown(table)}\n\nwrote {job.output / _file(job, 'md')}, run {run.run_id}")
    return table


def _file(job: BenchmarkJob, kind: str) -> str:
    return f"{NAME}_{job.split}.{kind}"


def _open(job: BenchmarkJob, log: Log, load: Callable[[str], TokenEncoder]) -> Benchmark:
    graph = read_graph(job.folder)
    log(f"data {job.folder}: {graph.n_entities:,} entities, {len(graph.pairs('train')):,} edges")
    encoder = load(job.encoder)
    tokens = encode_tokens(encoder, graph.texts, job.cache, progress=job.progress)
    facts = {
        "name": encoder.name,
        "weight_hash": encoder.weight_hash,
        "precision": encoder.precision,
    }
    vectors = TextVectors(tokens, *pool(tokens), facts)
    candidates = candidates_of(graph, vectors, walks_of(graph))
    return Benchmark(graph, vectors, candidates, queries_of(graph, "dev"))


class _Rows:
    """Runs the rows one after the other; each is a nested run for each of its seeds."""

    def __init__(
        self, job: BenchmarkJob, benchmark: Benchmark, queries: Queries, run: TrackedRun, log: Log
    ) -> None:
        self._job, self._run, self._log = job, run, log
        self._benchmark, self._queries = benchmark, queries
        self._done: dict[str, RankedRow] = {}

    def run(self) -> LinkTable:
        """Run what the job names: what needs no training, then all rows of the first seed first."""
        for name in SIMPLE:
            if name in self._job.models:
                self._done[name] = self._simple(name)
        self._write()
        for seed in self._job.seeds:
            for name, row in self._job.rows.items():
                if name in self._job.models:
                    self._add(row, seed)
                    self._write()
        return self._table()

    def _table(self) -> LinkTable:
        roles = dict.fromkeys(SIMPLE, BASELINE)
        roles |= {name: row.role for name, row in self._job.rows.items()}
        rows = [self._done.get(name) or RankedRow(name, role) for name, role in roles.items()]
        encoder = self._benchmark.vectors.encoder
        facts = {
            "encoder": f"{encoder['name']}, frozen, in {encoder['precision']}",
            "data": self._benchmark.graph.digest[:12],
        }
        return LinkTable(rows, self._queries, self._job.split, PUBLISHED, facts)

    def _write(self) -> None:
        """Write the table so far, and log it."""
        table = self._table()
        contents = {
            _file(self._job, "md"): to_markdown(table),
            _file(self._job, "json"): json.dumps(to_dict(table), indent=1),
        }
        log_texts(self._run, contents, self._job.output)

    def _simple(self, name: str) -> RankedRow:
        """A row without training; dev chooses its settings."""
        self._log(f"{name}: ranking")
        scorer, chosen = self._chosen(self._scorers(name))
        row = RankedRow(name, BASELINE, [rank(scorer, self._queries)], chosen=chosen)
        self._run.log_child(
            name, {"row": name, **chosen}, _numbers(row.ranks[0]), self._tags(BASELINE)
        )
        return row

    def _scorers(self, name: str) -> list[tuple[dict[str, float], Callable[[], Scorer]]]:
        graph, pooled = self._benchmark.graph, self._benchmark.vectors.pooled
        if name == MOST_COMMON:
            return [({}, partial(simple.most_common_parent, graph))]
        if name == RIDGE:
            return [
                ({"penalty": p}, partial(simple.ridge, graph, pooled, p)) for p in simple.PENALTIES
            ]
        assert name == VOTES
        return [
            (
                {"neighbours": k, "sharpness": s},
                partial(simple.neighbour_votes, graph, pooled, k, s),
            )
            for k in simple.NEIGHBOURS
            for s in simple.SHARPNESS
        ]

    def _chosen(
        self, scorers: list[tuple[dict[str, float], Callable[[], Scorer]]]
    ) -> tuple[Scorer, dict[str, float]]:
        """The scorer with the best MRR on dev, and its settings."""
        made = [(settings, make()) for settings, make in scorers]
        if len(made) == 1:
            return made[0][1], made[0][0]
        found = [
            METRICS["mrr"](rank(scorer, self._benchmark.dev).masked).mean() for _, scorer in made
        ]
        settings, scorer = made[max(range(len(made)), key=found.__getitem__)]
        return scorer, settings

    def _add(self, row: Row, seed: int) -> None:
        """Train a row with a seed, or read it, rank the queries, and track both."""
        self._log(f"{row.name}, seed {seed}")
        folder = self._job.output / "trained"
        trained = get_trained(folder, row, seed, self._benchmark, self._on_epoch)
        if trained.again:
            self._log(f"  trained before: {trained.path.name}")
        ranks = rank(trained.ranker.scorer(), self._queries)
        before = self._done.get(row.name) or RankedRow(row.name, row.role)
        n = len(before.seeds)
        self._done[row.name] = RankedRow(
            row.name,
            row.role,
            [*before.ranks, ranks],
            [*before.seeds, seed],
            trained.parameters,
            ((before.seconds or 0.0) * n + trained.seconds) / (n + 1),
        )
        self._run.log_child(
            f"{row.name} seed {seed}",
            {
                **row.settings(),
                "train.seed": seed,
                "parameters": trained.parameters,
                "best_epoch": trained.best.epoch,
                "trained_before": trained.again,
            },
            {**_numbers(ranks), "train_time_minutes": trained.seconds / 60},
            self._tags(row.role),
            history=_records(trained),
        )

    def _on_epoch(self, epoch: Epoch) -> None:
        dev = epoch.dev
        self._log(
            f"  epoch {epoch.epoch}: loss {epoch.loss:.3f}, dev Hits@1 {dev['hits_at_1']:.3f} "
            f"(unmasked {dev['unmasked_hits_at_1']:.3f}), MRR {dev['mrr']:.3f}, "
            f"{epoch.seconds:.0f} s"
        )

    def _tags(self, role: str) -> dict[str, str]:
        return {"kind": "benchmark", "role": role, "evaluated.split": self._job.split}


def _numbers(ranks: Ranks) -> dict[str, float]:
    return {
        f"{mask}.{name}": float(value(ranks.of(mask)).mean())
        for mask in MASKS
        for name, value in METRICS.items()
    }


def _records(trained: Trained) -> list[EpochRecord]:
    """The epochs of a training as runs log them: ``val_…`` is dev, with the mask."""
    best = trained.best.epoch
    return [
        EpochRecord(
            epoch=epoch.epoch,
            losses={"total": epoch.loss},
            lr=epoch.lr,
            seconds=epoch.seconds,
            examples_per_second=epoch.examples_per_second,
            val=dict(epoch.dev),
            improvement_trend=None,
            is_best=epoch.epoch == best,
            is_last=epoch is trained.history[-1],
            time=epoch.time,
        )
        for epoch in trained.history
    ]
