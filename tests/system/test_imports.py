import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "not_loaded"),
    [
        ("system", {"psutil", "torch"}),
        ("system.malloc", {"psutil", "torch"}),
        ("system.cpu_info", {"psutil", "torch"}),
        ("sweep.defaults", {"optuna", "torch", "mlflow"}),
        ("cli.sweep", {"optuna", "torch", "mlflow", "psutil"}),
        ("embeddings", {"faiss", "torch", "sentence_transformers", "vec2text"}),
        ("tracking", {"mlflow", "torch"}),
    ],
)
def test_importing_a_room_stays_light(module: str, not_loaded: set[str]) -> None:
    code = f"import sys, ocp_mamba.{module}; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & not_loaded
