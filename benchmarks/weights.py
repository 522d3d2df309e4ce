"""What rounding the weights costs: a trained model evaluated on the validation split in each form.

Needs the ``outputs/model.pt`` that `make run` writes, so it runs only when named.
"""

from __future__ import annotations

import torch

from benchmarks import timing
from benchmarks.frame import ROOT
from benchmarks.run import Run
from ocp_mamba.data.analysis.leakage import strata
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation import metrics
from ocp_mamba.evaluation.predict import predict_examples
from ocp_mamba.model.checkpoint import load_model
from ocp_mamba.model.quantize import WEIGHTS, quantize, weight_bytes

MODEL = ROOT / "outputs" / "model.pt"
SPLIT = "val"


def main(run: Run) -> None:
    """Evaluate the model with its matrices in float32, bf16 and int8."""
    if not MODEL.is_file():
        raise SystemExit(
            f"weights: not run: there is no {MODEL.relative_to(ROOT)}; `make run` first"
        )
    dataset, model = Dataset.load(ROOT / "ocp_training_9k.npz"), load_model(MODEL)
    targets, index = dataset.examples(SPLIT).target, BankIndex(dataset.bank)
    wanted = torch.from_numpy(dataset.bank[targets])
    unseen = strata(dataset, SPLIT)["unseen"]
    exact = None
    kinds = WEIGHTS[:2] if run.quick else WEIGHTS
    table = run.table(
        "A trained model by how its weights are stored",
        [{"weights": weights} for weights in kinds],
        f"{len(targets):,} sequences, {int(unseen.sum()):,} of them unseen transitions.",
    )
    for row, weights in zip(table.rows, kinds, strict=True):
        if run.over():
            break
        packed = quantize(model, weights)
        predicted = predict_examples(packed, dataset, SPLIT)
        exact = predicted if exact is None else exact
        hits = metrics.precision_at(index.search(predicted.numpy(), 1)[1], targets, 1)
        cosines = metrics.cosine(predicted, wanted).numpy()
        run.fill(
            row,
            {
                "MiB": weight_bytes(packed) / timing.MIB,
                "cosine": f"{cosines.mean():.5f}",
                "P@1": f"{hits.mean():.5f}",
                "cosine, unseen": f"{cosines[unseen].mean():.5f}",
                "P@1, unseen": f"{hits[unseen].mean():.5f}",
                "cosine to float32's prediction": f"{metrics.cosine(predicted, exact).mean():.6f}",
            },
        )
