"""Build causal_conv1d's kernels for one architecture, from its source archive, with nvcc.

Usage: python -m benchmarks.gpu.build_conv ARCHIVE SITE [ARCHITECTURE]

SITE is a folder of packages; the package appears there whole or not at all. ARCHITECTURE is a
compute capability such as 9.0; the default is that of the GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CXX = ("-O3", "-std=c++17")
NVCC = (
    *CXX, "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math",
)  # fmt: skip
PACKAGE, EXTENSION = "causal_conv1d", "causal_conv1d_cuda"


def build(archive: Path, site: Path, architecture: str = "") -> None:
    """Compile the extension beside the package's Python files, and move both to the site."""
    own = Path(sys.executable).parent  # ninja's program stands beside Python
    os.environ["PATH"] = f"{own}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("CUDA_HOME", str(toolkit()))  # read by the next import

    import torch
    from torch.utils import cpp_extension

    if not architecture:
        architecture = "{}.{}".format(*torch.cuda.get_device_capability())
    os.environ["TORCH_CUDA_ARCH_LIST"] = architecture
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    site.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site) as name:
        folder = Path(name)
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        source = next(folder.glob(f"{PACKAGE}-*"))
        built = folder / "built"
        built.mkdir()
        cpp_extension.load(
            EXTENSION,
            sources=[str(path) for path in sorted((source / "csrc").glob("*.c*"))],
            extra_include_paths=[str(source / "csrc"), *toolkit_headers(torch.__file__)],
            extra_cflags=list(CXX),
            extra_cuda_cflags=list(NVCC),
            extra_ldflags=[f"-L{path}" for path in toolkit_libraries(torch.__file__)],
            build_directory=str(built),
            is_python_module=False,
            verbose=True,
        )
        for path in built.glob(f"{EXTENSION}*.so"):
            path.replace(site / path.name)
        shutil.rmtree(site / PACKAGE, ignore_errors=True)
        (source / PACKAGE).replace(site / PACKAGE)


def toolkit() -> Path:
    """Return the folder of the CUDA toolkit, as nvcc says it, which may be a link or a script.

    Raises:
        SystemExit: there is no nvcc, or it does not say.
    """
    try:
        done = subprocess.run(
            ["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"causal_conv1d needs CUDA's compiler nvcc: {error}") from error
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    if found is None:
        raise SystemExit(f"nvcc does not say where its toolkit is: {done.stderr[:200]}")
    return Path(found[1]).resolve()


def toolkit_headers(torch_file: str) -> list[str]:
    """Headers of CUDA's libraries that come with torch, where nvcc came without them."""
    packages = Path(torch_file).parent.parent / "nvidia"
    return [str(path) for path in sorted(packages.glob("cu*/include")) if path.is_dir()]


def toolkit_libraries(torch_file: str) -> list[str]:
    """Folders of the libraries that belong to those headers."""
    packages = Path(torch_file).parent.parent / "nvidia"
    return [str(path) for path in sorted(packages.glob("cu*/lib")) if path.is_dir()]


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
