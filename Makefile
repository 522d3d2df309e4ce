# `make run` and `make test` need Python 3.11 or newer, make and git; `make help` lists the rest.

VENV := .venv
BIN := $(VENV)/bin
DATA ?= ocp_training_9k.npz
ENV_MANAGER ?=
EXPERIMENT ?= ocp_mamba
PORT ?= 5000
SERVE_PORT ?= 5001
SEEDS ?= 0,1,2
WORKERS ?= 2
ARGS ?=

# The Python that makes .venv: the first of these that is new enough, or PYTHON=...
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

export TORCH_INDEX_URL
# MLflow reports to a host outside unless this is true; a value of your own wins.
MLFLOW_DISABLE_TELEMETRY ?= true
export MLFLOW_DISABLE_TELEMETRY
# MLflow's child commands find `python` and `uv` here; recipes name $(BIN) themselves.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run quality variants test test-all bench soak mutants lint ui server serve install install-server install-dev lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  make run DATA=other.npz ARGS="-P max_epochs=3 -P model_size=tiny"'
	@echo '  make run ENV_MANAGER=local|uv|virtualenv   see docs/env-managers.md'
	@echo '  make run PYTHON=/path/to/python3.12'
	@echo '  make run TORCH_INDEX_URL=https://...   where torch comes from'

# Without ENV_MANAGER, MLflow uses .venv by the link that `make install` lays; laid again here in
# case another checkout removed it. A named manager makes its own environments in .venv-mlflow.
run: install ## install and run the main job in MLflow: train, evaluate, register
ifeq ($(ENV_MANAGER),)
	@$(BIN)/python scripts/link_mlflow_env.py $(VENV)
	$(BIN)/mlflow run . --experiment-name $(EXPERIMENT) -P data="$(DATA)" $(ARGS)
else
	$(if $(filter uv,$(ENV_MANAGER)),$(BIN)/uv --version || $(BIN)/pip install -q -c constraints.txt uv)
	MLFLOW_ENV_ROOT=$(CURDIR)/.venv-mlflow \
	$(BIN)/mlflow run . --env-manager $(ENV_MANAGER) --experiment-name $(EXPERIMENT) -P data="$(DATA)" $(ARGS)
endif

quality: install ## train the model and what it is compared with, SEEDS=0,1,2; evaluate on the test split
	$(BIN)/ocp-mamba quality --data "$(DATA)" --seeds $(SEEDS) --split test --experiment $(EXPERIMENT) $(ARGS)

variants: install ## train the base and its planned variants, evaluate them on the val split
	$(BIN)/ocp-mamba variants --data "$(DATA)" --experiment $(EXPERIMENT) $(ARGS)

test: install-dev ## install and run the tests; screenshots need chromium (apt-get install chromium)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-all: install-dev ## the tests, with those that take minutes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not gpu" $(ARGS)

bench: install-dev ## run the benchmarks and write docs/performance.md (ARGS="--quick train_step")
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]' || echo "mambapy does not install: not run"
	$(BIN)/python -m benchmarks $(ARGS)

soak: install-dev ## do what goes wrong in use, count what is lost, write docs/reliability.md (ARGS=fuzz)
	$(BIN)/python -m soak $(ARGS)

mutants: install-dev ## do the tests notice changes of what decides? writes docs/mutants.md
	$(BIN)/pip install -q -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutants.py

lint: install-dev ## ruff, mypy, and the import contracts of pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

ui: install ## open the tracked runs (PORT=5000)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/mlflow server --backend-store-uri sqlite:///mlflow.db --workers 1 --port $(PORT)

server: install-server ## start a team's tracking server, see docs/server.md (PORT=5000)
	$(BIN)/python scripts/server.py start --port $(PORT)

serve: install ## serve the registered candidate over HTTP (SERVE_PORT=5001)
	$(BIN)/ocp-mamba serve models:/ocp-mamba-lvm@candidate --port $(SERVE_PORT)

install: $(VENV)/.installed ## make .venv with what `make run` and `mlflow run .` need
install-server: $(VENV)/.installed-server ## make .venv with what `make server` needs
install-dev: $(VENV)/.installed-dev ## make .venv with what `make test` needs

# The install runs again when one of these is newer than the stamp of the last install.
INPUTS := pyproject.toml constraints.txt python_env.yaml scripts/install.py scripts/link_mlflow_env.py

$(VENV)/.installed: $(INPUTS)
	@$(call install,)
	@touch $@

$(VENV)/.installed-dev: $(INPUTS)
	@$(call install,--extras dev)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-server: $(INPUTS)
	@$(call install,--extras server)
	@touch $@ $(VENV)/.installed

define install
if [ -z "$(PYTHON)" ]; then \
	echo "make: Python 3.11 or newer is needed, and none was found: $(CANDIDATES)."; \
	echo "make: name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; fi; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "make: $(PYTHON) is not Python 3.11 or newer; name another one: PYTHON=..."; exit 1; }; \
$(PYTHON) scripts/install.py $(VENV) $(1)
endef

# The newest versions that pip picks here; uv adds the pins that other platforms need. torch keeps
# its pin: change that line of constraints.txt by hand before. CUDA's packages are left out: the
# builds of torch that need them pin them.
lock: ## write constraints.txt again from pyproject.toml's ranges
	rm -rf .venv-lock
	$(PYTHON) scripts/install.py .venv-lock --extras dev --newest
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > .venv-lock/pins.txt
	.venv-lock/bin/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 \
		--no-annotate --no-header -o .venv-lock/pins.txt
	( echo "# Tested versions, for pip's -c; written by 'make lock' from pyproject.toml."; \
	  grep -vE "^(nvidia-|cuda-|triton)|sys_platform == 'emscripten'" .venv-lock/pins.txt \
	) > constraints.txt
	rm -rf .venv-lock

clean: ## remove .venv, its link for MLflow, and caches (not the tracked runs)
	-@[ ! -d $(VENV) ] || $(PYTHON) scripts/link_mlflow_env.py $(VENV) --remove
	rm -rf $(VENV) .venv-mlflow .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache build *.egg-info
