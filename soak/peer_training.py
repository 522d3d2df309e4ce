"""One training of a few epochs that logs ``val_loss``, by this package or by a peer.

Usage: python -m soak.peer_training PEER EXPERIMENT EPOCHS

Before each epoch it prints a line of JSON with the epoch's number and the seconds that logging took
of the epoch before, and waits for a line. The last line has no epoch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Clock:
    """Says which epoch is next, waits for a word, and counts the time between two epochs."""

    def __init__(self) -> None:
        self._epoch = 0
        self._left: float | None = None

    def next_epoch(self) -> None:
        """Call it at the begin of an epoch; since the last one's work only logging took time."""
        self._epoch += 1
        print(json.dumps({"epoch": self._epoch, "blocked": self._blocked()}), flush=True)
        sys.stdin.readline()

    def worked(self) -> None:
        """Call it when an epoch's work is done, and before anything is logged of it."""
        self._left = time.perf_counter()

    def end(self) -> None:
        print(json.dumps({"blocked": self._blocked()}), flush=True)

    def _blocked(self) -> float:
        return 0.0 if self._left is None else time.perf_counter() - self._left


def with_ocp_mamba(experiment: str, epochs: int, clock: Clock) -> None:
    from data_maker import make_dataset

    from ocp_mamba.tracking import session
    from ocp_mamba.tracking.metrics import metric_entry

    with session.track(
        make_dataset(), "d.npz", output_dir="out", experiment=experiment, system_metrics=False
    ) as run:
        for epoch in range(1, epochs + 1):
            clock.next_epoch()
            clock.worked()
            metric = metric_entry("val_loss", 1 / epoch, int(time.time() * 1000), epoch)
            run._send({"op": "log", "metrics": [metric]})
        clock.end()


def lightning_module(clock: Clock) -> tuple[Any, Any]:
    """A Lightning module that logs its validation loss, and its data."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch: Tensor, index: int) -> None:
            self.log("val_loss", self.layer(batch[0]).square().mean(), on_epoch=True)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def on_train_epoch_start(self) -> None:
            clock.next_epoch()

        def on_validation_epoch_start(self) -> None:
            clock.worked()

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)))
    return Module(), data


def train_with_lightning(experiment: str, epochs: int, clock: Clock, logger: Any) -> None:
    import lightning.pytorch as pl

    module, data = lightning_module(clock)
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, data, data)


def with_autolog(experiment: str, epochs: int, clock: Clock) -> None:
    import mlflow

    mlflow.set_experiment(experiment)
    mlflow.config.enable_async_logging()
    mlflow.pytorch.autolog(log_models=False)
    with mlflow.start_run():
        train_with_lightning(experiment, epochs, clock, logger=False)
        clock.end()


def with_lightning_logger(experiment: str, epochs: int, clock: Clock) -> None:
    import os

    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(experiment, tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    train_with_lightning(experiment, epochs, clock, logger)
    clock.end()


def with_hugging_face(experiment: str, epochs: int, clock: Clock) -> None:
    import os

    from transformers import Trainer, TrainerCallback, TrainingArguments

    os.environ["MLFLOW_EXPERIMENT_NAME"] = experiment

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            y = self.layer(x)
            return {"loss": y.square().mean(), "logits": y}

    class Told(TrainerCallback):
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.next_epoch()

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            clock.worked()

    rows = [{"x": torch.randn(4), "labels": torch.zeros(1)} for _ in range(8)]
    trainer = Trainer(
        Model(),
        TrainingArguments(
            "hf",
            num_train_epochs=epochs,
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            report_to=["mlflow"],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[Told()],
    )
    trainer.train()
    clock.end()


TRAININGS = {
    "ocp_mamba": with_ocp_mamba,
    "MLflow autolog, asynchronous": with_autolog,
    "Lightning MLFlowLogger": with_lightning_logger,
    "Hugging Face MLflowCallback": with_hugging_face,
}


if __name__ == "__main__":
    Path("out").mkdir(exist_ok=True)
    torch.manual_seed(0)
    peer, experiment, epochs = sys.argv[1:]
    TRAININGS[peer](experiment, int(epochs), Clock())
