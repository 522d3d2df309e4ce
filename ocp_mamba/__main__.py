"""``python -m ocp_mamba`` is ``ocp-mamba``; torchrun needs a module to start."""

from ocp_mamba.cli import main

if __name__ == "__main__":
    main(prog_name="ocp-mamba")
