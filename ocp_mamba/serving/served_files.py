"""What a scoring server takes from a version's folder beside the weights: code and ``MLmodel``."""

from __future__ import annotations

from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.models import Model

from ocp_mamba.errors import EvidenceError, first_line
from ocp_mamba.serving.bundle import CHECKPOINT, PACKAGE, code_digest

CODE = "code"
LOADER = "mlflow.pyfunc.loaders.code_model"
ARTIFACT = f"artifacts/{CHECKPOINT}"


def require_served_files(folder: Path, code_sha256: str) -> None:
    """Refuse a version whose server would run other code, or read other weights, than were checked.

    Args:
        folder: of the version, as MLflow stores it.
        code_sha256: digest of the package at training, of `bundle.code_digest`.

    Raises:
        EvidenceError: ``code-changed`` or ``mlmodel-changed``.
    """
    package = folder / CODE / PACKAGE.name
    found = code_digest(package)
    if found != code_sha256:
        raise EvidenceError(
            "code-changed",
            f"the package in {CODE}/ has SHA-256 {found[:12]}…, the manifest says "
            f"{code_sha256[:12]}…: it was edited after the training, or the model was stored by "
            "another version of ocp-mamba than trained it",
        )
    try:
        served = Model.load(str(folder)).flavors["python_function"]
        weights, entry = served["artifacts"]["checkpoint"]["path"], served["model_code_path"]
    except (MlflowException, OSError, KeyError, TypeError) as error:
        raise EvidenceError("mlmodel-changed", f"MLmodel: {first_line(error)}") from error
    said = (served.get("loader_module"), served.get("code"), weights)
    if said != (LOADER, CODE, ARTIFACT):
        raise EvidenceError(
            "mlmodel-changed", f"MLmodel has {said}, wanted {(LOADER, CODE, ARTIFACT)}"
        )
    name = Path(entry).name
    original = package / "serving" / name
    if not original.is_file() or original.read_bytes() != (folder / name).read_bytes():
        raise EvidenceError(
            "code-changed", f"{name}, which the server runs, is not that of {CODE}/"
        )
