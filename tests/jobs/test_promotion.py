"""Promotion: the way of versions from candidate to champion and back."""

from __future__ import annotations

import threading
from pathlib import Path

import mlflow
import pytest
import torch
from command import run
from forgeries import Forgery, Workshop
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from registered import GOOD, learnable, train_version
from servers import Server

from ocp_mamba.config import override
from ocp_mamba.data.analysis.sample import EvalLimits, evaluation_part
from ocp_mamba.errors import ConfigError
from ocp_mamba.jobs.promotion import promote
from ocp_mamba.jobs.promotion.promote import (
    FORCED,
    PROMOTED,
    REFUSED,
    UNCHANGED,
    PromotionJob,
    PromotionOutcome,
    run_promotion,
)
from ocp_mamba.tracking.registry.aliases import CHAMPION, MODEL_NAME, aliases_of, make_champion
from ocp_mamba.tracking.registry.versions import find_version
from ocp_mamba.tracking.store import use_store


def promoted(version: ModelVersion, **settings: object) -> PromotionOutcome:
    said: list[str] = []
    job = PromotionJob(str(version.version), version.name, **settings)  # type: ignore[arg-type]
    return run_promotion(job, said.append)


def with_failed_gate(workshop: Workshop) -> Forgery:
    """A copy whose cosine fell from epoch to epoch, which it says itself."""
    copy = workshop.copy()
    copy.manifest["training"]["trends"] = [None, None, -0.1]
    copy.manifest["gates"]["improvement_trend"] = "fail"
    copy.seal()
    return copy


def worse(workshop: Workshop) -> Forgery:
    """A copy with noise in its weights, which passes every gate too."""
    copy = workshop.copy()
    torch.manual_seed(0)

    def add_noise(content: dict[str, dict[str, torch.Tensor]]) -> None:
        weight = content["state_dict"]["output.weight"]
        weight += 0.35 * weight.std() * torch.randn(weight.shape)

    copy.weights(add_noise)
    copy.remake(learnable())
    assert set(copy.manifest["gates"].values()) == {"pass"}, copy.manifest["gates"]
    copy.seal()
    return copy


def test_a_version_becomes_champion_and_says_why(workshop: Workshop) -> None:
    first = promoted(workshop.copy().register("way"))
    assert first.verdict == PROMOTED, first.card
    assert aliases_of("way") == {"champion": "1"}
    second = promoted(workshop.copy().register("way"))
    assert second.verdict == PROMOTED, second.card
    assert aliases_of("way") == {"champion": "2", "previous": "1"}

    version = find_version("way", CHAMPION)
    assert version.description == second.card
    for text in ("**Version 2. Promoted", "| this version | 0.", "| champion | 0.", "| ridge |",
                 "| difference | +0.000 [+0.000, +0.000]", "| beats_baselines_p1 | pass |",
                 "n = 222 val sequences of 37 families", "pool 24 concepts",
                 "compared with: version 1"):  # fmt: skip
        assert text in second.card.replace("\N{NO-BREAK SPACE}", ""), text
    assert "there was no champion" in first.card
    tags = version.tags
    assert tags["promotion.verdict"] == PROMOTED
    assert tags["promotion.faults"] == "none"
    assert tags["promotion.compared_with"] == "1"
    assert tags["promotion.difference.P1_unseen"] == "+0.0000 [+0.0000, +0.0000]"
    assert tags["promotion.user"]
    assert tags["promotion.time"].endswith("UTC")

    again = promoted(version)
    assert again.verdict == UNCHANGED
    assert aliases_of("way") == {"champion": "2", "previous": "1"}


def test_a_version_that_loses_to_the_champion_is_refused(workshop: Workshop) -> None:
    make_champion_of(workshop, "loses")
    outcome = promoted(worse(workshop).register("loses"))
    assert outcome.verdict == REFUSED
    assert set(outcome.faults) == {"champion-better"}
    assert "- champion-better: cosine: difference to the champion -0." in outcome.card
    assert aliases_of("loses") == {"champion": "1"}
    assert find_version("loses", "2").description == outcome.card


def make_champion_of(workshop: Workshop, name: str) -> ModelVersion:
    version = workshop.copy().register(name)
    make_champion(name, str(version.version), instead_of=None)
    return version


def test_a_failed_gate_refuses_and_force_promotes_with_its_reason(workshop: Workshop) -> None:
    make_champion_of(workshop, "forced")
    version = with_failed_gate(workshop).register("forced")
    outcome = promoted(version)
    assert outcome.verdict == REFUSED
    assert outcome.faults == ("gate-failed",)
    assert aliases_of("forced") == {"champion": "1"}
    assert "improvement_trend is fail" in find_version("forced", "2").tags["promotion.reason"]

    forced = promoted(version, force=True, reason="the plateau is known")
    assert forced.verdict == FORCED
    assert aliases_of("forced") == {"champion": "2", "previous": "1"}
    tags = find_version("forced", "champion").tags
    assert tags["promotion.verdict"] == FORCED
    assert tags["promotion.reason"] == "the plateau is known"
    assert tags["promotion.faults"] == "gate-failed"
    assert "Promoted by force. Reason given: the plateau is known" in forced.card
    assert "- gate-failed: improvement_trend is fail" in forced.card


def test_force_does_not_promote_what_no_server_can_load(workshop: Workshop) -> None:
    copy = workshop.copy()
    copy.file("model.pt").unlink()
    outcome = promoted(copy.register("unservable"), force=True, reason="because")
    assert outcome.verdict == REFUSED
    assert outcome.faults == ("weights-missing",)
    assert aliases_of("unservable") == {}


def test_a_force_has_a_reason() -> None:
    with pytest.raises(ConfigError, match="--force needs --reason"):
        PromotionJob(force=True, reason=" ")
    with pytest.raises(ConfigError, match="--reason goes with --force"):
        PromotionJob(reason="because")


def test_a_sample_of_a_large_dataset_is_evidence_too(workshop: Workshop) -> None:
    copy = workshop.copy()
    dataset = learnable()
    copy.remake(evaluation_part(dataset, EvalLimits(sequences=190, train=400)))
    assert "sample.npz" in copy.manifest["files"]
    copy.seal()
    outcome = promoted(copy.register("sampled"))
    assert outcome.verdict == PROMOTED, outcome.card
    np_sample = copy.file("sample.npz")
    np_sample.unlink()
    assert promoted(copy.register("sampled")).faults == ("sample-missing",)


@pytest.mark.slow
@pytest.mark.parametrize("writes", [0, 1])
def test_a_promotion_that_is_killed_can_be_run_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    name = f"killed-{writes}"
    make_champion_of(workshop, name)
    version = workshop.copy().register(name)
    left, real = [writes], MlflowClient.set_registered_model_alias

    def set_alias(client: MlflowClient, *words: str) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(client, *words)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", set_alias)
        with pytest.raises(KeyboardInterrupt):
            promoted(version)
    assert aliases_of(name)["champion"] == "1"
    assert promoted(version).verdict == PROMOTED
    assert aliases_of(name) == {"champion": "2", "previous": "1"}


def test_a_promotion_decided_against_a_former_champion_is_refused(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, which does not share the lock, was faster."""
    make_champion_of(workshop, "moved")
    other, version = (workshop.copy().register("moved") for _ in range(2))
    real = promote.compare

    def meanwhile(*words: object) -> object:
        mlflow.MlflowClient().set_registered_model_alias("moved", CHAMPION, other.version)
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(promote, "compare", meanwhile)
    outcome = promoted(version)
    assert outcome.verdict == REFUSED
    assert outcome.faults == ("champion-moved",)
    assert aliases_of("moved")["champion"] == str(other.version)
    assert find_version("moved", str(version.version)).tags["promotion.verdict"] == REFUSED


@pytest.mark.slow
def test_promotions_at_once_follow_one_another(workshop: Workshop) -> None:
    make_champion_of(workshop, "at-once")
    versions = [workshop.copy().register("at-once") for _ in range(2)]
    outcomes: list[PromotionOutcome] = []
    threads = [
        threading.Thread(target=lambda v=v: outcomes.append(promoted(v)))  # type: ignore[misc]
        for v in versions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.verdict for outcome in outcomes] == [PROMOTED, PROMOTED]
    first, second = (str(outcome.version.version) for outcome in outcomes)
    assert aliases_of("at-once") == {"champion": second, "previous": first}
    against = find_version("at-once", second).tags["promotion.compared_with"]
    assert against == first


def test_the_commands(workshop: Workshop) -> None:
    make_champion_of(workshop, "typed")
    workshop.copy().register("typed")
    edited = workshop.copy()
    edited.tags["faiss_retrieval_p1"] = "0.990000"
    edited.register("typed")
    typed = ("--model-name", "typed", "--store", workshop.store)
    assert "promoted: typed version 2" in run("promote", 2, *typed)
    assert "champion of typed is version 1 again, previous is version 2" in run("rollback", *typed)
    assert aliases_of("typed") == {"champion": "1", "previous": "2"}
    refused = run("promote", 3, *typed, code=1)
    assert "refused: typed version 3, scores-edited" in refused
    assert "version-missing: typed version 99" in run("promote", 99, *typed, code=2)
    assert "typed has no alias 'candidate'" in run("promote", *typed, code=2)
    assert "--force needs --reason" in run("promote", 3, "--force", *typed, code=2)
    forced = run("promote", 3, "--force", "--reason", "known", *typed)
    assert "forced: typed version 3, scores-edited" in forced
    absent = ("--model-name", "absent", "--store", workshop.store)
    assert "registered model absent" in run("rollback", *absent, code=2)


def test_a_worse_training_is_registered_and_leaves_the_alias(
    workshop: Workshop, tmp_path: Path
) -> None:
    assert aliases_of(MODEL_NAME)["candidate"] == str(workshop.genuine.version)
    data, said = workshop.folder / "learnable.npz", list[str]()
    quick = override(GOOD, max_epochs=1)
    worse = train_version(data, tmp_path, quick, said).version
    assert worse is not None
    assert aliases_of(MODEL_NAME)["candidate"] == str(workshop.genuine.version)
    printed = "\n".join(said)
    for text in (
        f"registered   {MODEL_NAME} version {worse.version}, without the alias candidate:",
        f"and version {workshop.genuine.version}, which has it, passes",
        "--alias-anyway moves it all the same; --model-name",
        f"ocp-mamba serve models:/{MODEL_NAME}/{worse.version}\n",
    ):
        assert text in printed, text
    assert worse.tags["alias.candidate"].startswith("not moved: ")

    said.clear()
    anyway = train_version(data, tmp_path, quick, said, model_name="mine", alias_anyway=True)
    assert anyway.version is not None
    assert anyway.version.name == "mine"
    assert aliases_of("mine") == {"candidate": "1"}
    assert "registered   mine version 1, alias candidate" in "\n".join(said)


@pytest.mark.slow
def test_over_http_with_artifacts_behind_the_server(
    server: Server, store: str, tmp_path: Path
) -> None:
    """Versions are strings there and numbers in an SQL store, and files are downloaded."""
    use_store(server.url)
    learnable().save(tmp_path / "learnable.npz")
    for number in ("1", "2"):
        version = train_version(tmp_path / "learnable.npz", tmp_path, model_name="http").version
        assert version is not None
        assert str(version.version) == number
        assert promoted(version).verdict == PROMOTED
    assert aliases_of("http") == {"candidate": "2", "champion": "2", "previous": "1"}
    assert promoted(find_version("http", CHAMPION)).verdict == UNCHANGED
    assert "is version 1 again" in run("rollback", "--model-name", "http", "--store", server.url)
    mlflow.MlflowClient().set_model_version_tag("http", "2", "next_vec_cosine", "0.990000")
    assert promoted(find_version("http", "2")).faults == ("scores-edited",)
    assert aliases_of("http") == {"candidate": "2", "champion": "1", "previous": "2"}
