"""`ocp-mamba predict`: each row of the file against the model's own answer for that example."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bundles import write_version
from command import run
from data_maker import make_dataset
from trainings import TINY, seeded

from ocp_mamba.config import ModelConfig, override
from ocp_mamba.data.batches import MEGABATCH, batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.shards.convert import shard
from ocp_mamba.jobs.predict import inputs
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.serving.bundle import CHECKPOINT

DATA = make_dataset(120, 40, relations=True)
MODEL = seeded(TINY).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.pt`` and ``data.npz``, and ``vectors.npz`` of three sequences with padding."""
    folder = tmp_path_factory.mktemp("files")
    write_version(folder, DATA, TINY)
    DATA.save(folder / "data.npz")
    np.savez(folder / "vectors.npz", **VECTORS)
    return folder


RNG = np.random.default_rng(0)
VECTORS = {
    "seq_vectors": RNG.standard_normal((3, 5, 768)).astype(np.float32),
    "lengths": np.array([5, 1, 3]),
}


def predict(files: Path, out: Path, *words: Any, data: str = "data.npz", code: int = 0) -> str:
    where = ("--data", files / data, "--model", files / CHECKPOINT, "--out", out, "--quiet")
    return run("predict", *where, *words, code=code)


def expected(dataset: Dataset, split: str, model: Any = MODEL) -> np.ndarray:
    """The model's prediction for each example of a split, one at a time, (n, 768)."""
    found = dataset.examples(split)
    rows = []
    for chain, position in zip(found.chain, found.position, strict=True):
        context = torch.from_numpy(dataset.bank[dataset.chain(chain)[:position]])[None]
        given = {}
        if model.d_tmd:
            given["tmd"] = torch.from_numpy(dataset.chain_tmd[[chain]])
        if model.n_relations:
            start = dataset.chain_offsets[chain]
            steps = dataset.steps(np.arange(start, start + position)[None])
            given["relations"] = torch.from_numpy(steps)
        with torch.inference_mode():
            rows.append(model(context, **given)[0].numpy())
    return np.array(rows)


def test_each_row_is_the_models_answer_for_that_example(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "p.parquet"
    said = predict(files, out, "--split", "test", "--vectors")
    table = pq.read_table(out)
    examples, wanted = DATA.examples("test"), expected(DATA, "test")
    assert f"{len(wanted)} rows" in said
    assert table["example"].to_pylist() == list(range(len(wanted)))
    assert table["chain"].to_pylist() == examples.chain.tolist()
    assert table["context_length"].to_pylist() == examples.position.tolist()
    assert table["target"].to_pylist() == DATA.texts[examples.target].tolist()
    np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), wanted, atol=1e-5)
    cosines = wanted @ DATA.bank.T
    assert table["concept"].to_pylist() == DATA.texts[cosines.argmax(axis=1)].tolist()
    np.testing.assert_allclose(table["score"].to_numpy(), cosines.max(axis=1), atol=1e-5)


def test_an_npz_has_the_same_rows_and_the_texts_that_they_name(files: Path, tmp_path: Path) -> None:
    predict(files, tmp_path / "p.npz", "--top-k", 3, "--vectors")
    predict(files, tmp_path / "p.parquet", "--top-k", 3)
    table = pq.read_table(tmp_path / "p.parquet")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as arrays:
        for name in ("example", "chain", "context_length"):
            assert arrays[name].tolist() == table[name].to_pylist()
        texts = arrays["texts"]
        assert texts[arrays["target"]].tolist() == table["target"].to_pylist()
        assert texts[arrays["found"]].tolist() == table["concepts"].to_pylist()
        assert texts[arrays["found"][:, 0]].tolist() == table["concept"].to_pylist()
        assert np.array_equal(arrays["score"], np.stack(table["scores"].to_numpy()))
        wanted = np.concatenate([expected(DATA, split) for split in ("train", "val", "test")])
        np.testing.assert_allclose(arrays["vector"], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [override(TINY, d_tmd=16), override(TINY, relations=("is a", "part of"))],
    ids=["tmd", "relations"],
)
def test_conditions_of_the_dataset_are_read(tmp_path: Path, config: ModelConfig) -> None:
    model = seeded(config).eval()
    if model.n_relations:
        torch.nn.init.normal_(model.relation_adapter.adapter.weight)
    encoder = DATA.meta["encoder"]
    save_checkpoint(tmp_path / CHECKPOINT, model, dataset_fingerprint="f", encoder=encoder)
    DATA.save(tmp_path / "data.npz")
    predict(tmp_path, tmp_path / "p.npz", "--split", "val", "--vectors")
    with np.load(tmp_path / "p.npz") as arrays:
        np.testing.assert_allclose(arrays["vector"], expected(DATA, "val", model), atol=1e-5)


def test_many_blocks_and_a_folder_of_shards_give_the_same(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(files, tmp_path / "one.npz", "--vectors")
    shard(files / "data.npz", tmp_path / "shards")
    monkeypatch.setattr(inputs, "CHAINS_IN_A_BATCH", 1)
    monkeypatch.setattr(inputs, "MEGABATCH", 7)
    monkeypatch.setattr("ocp_mamba.data.batches.MEGABATCH", 7)
    where = ("--data", tmp_path / "shards", "--model", files / CHECKPOINT, "--quiet")
    run("predict", *where, "--out", tmp_path / "many.npz", "--vectors")
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "many.npz") as many:
        assert set(one.files) == set(many.files)
        for name in one.files:
            if one[name].dtype.kind == "f":
                np.testing.assert_allclose(one[name], many[name], atol=1e-5)
            else:
                assert np.array_equal(one[name], many[name])


def test_batches_in_order_go_through_the_chains_block_by_block() -> None:
    ids = [b.chain_ids.tolist() for b in batches(DATA, "train", 1, in_order=True)]
    flat = [i for batch in ids for i in batch]
    chains = DATA.chains_in("train").tolist()
    assert sorted(flat) == chains
    assert sorted(flat[:MEGABATCH]) == chains[:MEGABATCH]
    assert flat[:MEGABATCH] != chains[:MEGABATCH]


def test_vectors_are_read_in_any_float_type_and_scale(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of one sequence, as a file larger than memory is read."""
    monkeypatch.setattr(inputs, "POSITIONS_IN_A_BLOCK", 1)
    with torch.inference_mode():
        wanted = MODEL(
            torch.from_numpy(VECTORS["seq_vectors"]), lengths=torch.from_numpy(VECTORS["lengths"])
        ).numpy()
    for dtype, scale in (("<f2", 1), ("<f4", 1e30), ("<f8", 1e-200), (">f4", 1)):
        given = (VECTORS["seq_vectors"].astype("f8") * scale).astype(dtype)
        given[1, 1:] = np.nan  # padding is not looked at
        np.savez_compressed(tmp_path / "v.npz", seq_vectors=given, lengths=VECTORS["lengths"])
        where = ("--data", tmp_path / "v.npz", "--model", files / CHECKPOINT, "--quiet", "--force")
        words = ("--out", tmp_path / "p.npz", "--vectors", "--bank", files / "data.npz")
        run("predict", *where, *words)
        with np.load(tmp_path / "p.npz") as found:
            assert found["context_length"].tolist() == [5, 1, 3]
            tolerance = 1e-5 if dtype != "<f2" else 3e-3
            np.testing.assert_allclose(found["vector"], wanted, atol=tolerance)
            best = (found["vector"] @ DATA.bank.T).argmax(axis=1)
            assert found["found"][:, 0].tolist() == best.tolist()


def test_memory_does_not_grow_with_a_file_of_vectors(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "POSITIONS_IN_A_BLOCK", 500)
    np.savez(tmp_path / "v.npz", seq_vectors=RNG.standard_normal((1_000, 10, 768), np.float32))
    where = ("--data", tmp_path / "v.npz", "--model", files / CHECKPOINT, "--quiet")
    words = ("--out", tmp_path / "p.npz", "--vectors", "--top-k", 0, "--force")
    run("predict", *where, *words)  # imports
    tracemalloc.start()
    run("predict", *where, *words)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "v.npz").stat().st_size > 30e6
    assert peak < 10e6
    assert len(np.load(tmp_path / "p.npz")["vector"]) == 1_000


def test_without_a_bank_there_are_vectors_alone(files: Path, tmp_path: Path) -> None:
    said = predict(files, tmp_path / "p.parquet", data="vectors.npz", code=2)
    assert "has no bank of concepts" in said
    assert "--top-k 0 --vectors" in said
    predict(files, tmp_path / "p.parquet", "--top-k", 0, "--vectors", data="vectors.npz")
    assert pq.read_table(tmp_path / "p.parquet").column_names == [
        "example",
        "context_length",
        "vector",
    ]


X = VECTORS["seq_vectors"]


def changed(at: tuple[int, ...], value: float) -> np.ndarray:
    x = X.copy()
    x[at] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"seq_vectors": X[0]}, "(5, 768) found, floats (B, L, 768)"),
        ({"seq_vectors": X[..., :700]}, "(3, 5, 700) found"),
        ({"seq_vectors": X[:, :0]}, "(3, 0, 768) found"),
        ({"seq_vectors": X.astype(int)}, "int64 (3, 5, 768) found, floats"),
        ({"seq_vectors": np.asfortranarray(X)}, "stored by columns found"),
        ({"seq_vectors": X.astype(object)}, "it holds pickles"),
        ({"seq_vectors": changed((2, 1, 7), np.nan)}, "seq_vectors[2][1] is not finite"),
        ({"seq_vectors": changed((2, 1, 7), np.inf)}, "seq_vectors[2][1] is not finite"),
        ({"seq_vectors": changed((0, 4), 0)}, "seq_vectors[0][4] is all zeros"),
        ({"seq_vectors": X, "lengths": np.array([1, 2])}, "3 whole numbers from 1 to 5 wanted"),
        ({"seq_vectors": X, "lengths": np.array([1, 0, 2])}, "of 0 to 2 found"),
        ({"seq_vectors": X, "lengths": np.array([1, 6, 2])}, "of 1 to 6 found"),
        ({"seq_vectors": X, "length": np.array([1, 1, 2])}, "unknown keys ['length']"),
        ({"seq_vectors": X, "tmd": np.zeros((3, 16))}, "the model takes no TMD vectors"),
    ],
)
def test_a_file_that_is_not_as_wanted_is_refused_and_leaves_nothing(
    files: Path, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "v.npz", **arrays)
    where = ("--data", tmp_path / "v.npz", "--model", files / CHECKPOINT, "--quiet")
    out = ("--out", tmp_path / "p.parquet", "--vectors", "--top-k", 0)
    assert message in run("predict", *where, *out, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]


def test_a_damaged_file_is_refused(files: Path, tmp_path: Path) -> None:
    content = bytearray((files / "vectors.npz").read_bytes())
    with zipfile.ZipFile(files / "vectors.npz") as archive:
        start = archive.getinfo("seq_vectors.npy").header_offset
    content[start + 5_000] ^= 1
    (tmp_path / "v.npz").write_bytes(content)
    where = ("--data", tmp_path / "v.npz", "--model", files / CHECKPOINT, "--quiet")
    out = ("--out", tmp_path / "p.npz", "--vectors", "--top-k", 0)
    assert "is damaged" in run("predict", *where, *out, code=2)
    assert not (tmp_path / "p.npz").exists()


def test_a_file_is_not_replaced_without_leave(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.npz"
    out.write_bytes(b"mine")
    assert "exists; replace it with --force" in predict(files, out, code=2)
    assert out.read_bytes() == b"mine"
    predict(files, out, "--force")
    assert len(np.load(out)["example"]) == sum(DATA.n_examples(s) for s in ("train", "val", "test"))
    assert "is the file that is to be read" in predict(files, files / "data.npz", "--force", code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-k", 0], "there would be nothing to write"),
        (["--top-k", 41], "the bank has 40 concepts"),
        (["--top-k", -1], "-1 is not in the range"),
        (["--bank", "data.npz"], "not found"),
        (["--split", "dev"], "'dev' is not one of"),
        (["--vector"], "No such option '--vector'"),
    ],
)
def test_bad_options_are_one_clear_line(
    files: Path, tmp_path: Path, words: list[Any], message: str
) -> None:
    said = predict(files, tmp_path / "p.npz", *words, code=2)
    assert message in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_other_names_and_banks_are_refused(files: Path, tmp_path: Path) -> None:
    assert "ends in .parquet or .npz" in predict(files, tmp_path / "p.csv", code=2)
    said = predict(files, tmp_path / "p.npz", "--bank", files / "data.npz", code=2)
    assert "a dataset's predictions are named by its own" in said
    meta = DATA.meta | {"encoder": {"name": "other", "weight_hash": "9" * 64}}
    make_dataset(60, 40, relations=True, meta=meta).save(tmp_path / "other.npz")
    where = ("--data", tmp_path / "other.npz", "--model", files / CHECKPOINT, "--quiet")
    said = run("predict", *where, "--out", tmp_path / "p.npz", code=2)
    assert "encoder mismatch" in said
