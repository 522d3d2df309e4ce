"""``python -m ocp_mamba.cli`` is ``ocp-mamba``."""

from ocp_mamba.cli.main import main

if __name__ == "__main__":
    main(prog_name="ocp-mamba")
