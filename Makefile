# `make` alone lists what there is. Settings: PYTHON (3.11 or newer), VENV, JOBS (for test), ARGS (for demo, test and bench),
# TORCH_INDEX (Linux without a GPU: https://download.pytorch.org/whl/cpu saves some GB).
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2
TORCH_INDEX ?=

BIN := $(VENV)/bin
# Compiling everything takes longer than the rest of the installation; Python compiles what is used, once, if it may write it.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
SETTINGS := pyproject.toml constraints.txt

REAL := recipes/real/ethics.yaml
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo real test lint docs dist check format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.installed ## make the virtual environment with all that the demo needs

install-dev: $(VENV)/.installed-dev ## the same, with the tools for tests and checks

demo: install ## run the whole loop on the lab's models (recipes/lab.yaml); minutes on two cores
	$(BIN)/cowest run recipes/lab.yaml --jobs 2 $(ARGS)

real: install ## the loop with really pretrained models on real data (recipes/real/ethics.yaml); up to two hours on two cores
	@$(OFFLINE) $(BIN)/cowest validate $(REAL) && $(OFFLINE) $(BIN)/cowest estimate $(REAL) --measure || { echo "make real fetches nothing.\
	 Set COWEST_MODELS_DIR to a folder with the recipe's two models (folders or GGUF files), and COWEST_DATA_DIR to one that holds\
	 prosocial/ (labelled.jsonl, or the published files). recipes/README.md has more." >&2; exit 1; }
	$(OFFLINE) $(BIN)/cowest run $(REAL) $(ARGS)

test: install-dev ## run the tests, two files at a time; JOBS=4 for more, ARGS="-m 'not slow'" for the quick ones
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: install-dev ## format, lint, types and import contracts, without the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src/cowest tests benchmarks
	$(BIN)/lint-imports

docs: install-dev ## build the documentation site into build/docs; a broken link is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

dist: install-dev ## build the release's wheel and source archive into dist/
	$(BIN)/python -m build --outdir dist .

check: lint test docs ## everything that CI checks

format: install-dev ## put the code into shape
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: install ## measure the demo's stages and the drafting throughput
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the virtual environment, caches and builds; keeps runs/
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below are renewed when the settings change; pip then installs only what differs.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "cowest needs Python 3.11 or newer, and '$(PYTHON)' is not one. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "[1/3] creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

# torch goes first: it is most of the download, and the extra index is meant for nothing else.
$(VENV)/.installed: $(SETTINGS) | $(VENV)/bin/python
	@echo "[2/3] installing torch (some 200 MB for the CPU; a minute or so)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@echo "[3/3] installing cowest with everything it can use (a minute or so)"
	@$(PIP) --editable '.[all]'
	@$(BIN)/cowest --help >/dev/null
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "[dev] installing the tools for tests and checks"
	@$(PIP) --editable '.[all,dev]'
	@touch $@
