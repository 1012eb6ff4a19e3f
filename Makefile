# Set-up, quick start and checks on a machine without a GPU. `make help` lists the targets.
# Variables: PYTHON (the interpreter that makes the environment), VENV (its folder), ARGS (further arguments).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Written last: while it is missing or old, the environment is not taken to be whole.
STAMP := $(VENV)/.installed

.PHONY: help quickstart install install-cluster test test-cluster chaos bench-dedup lint docs lock tiny

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

quickstart: $(STAMP) ## set up, then run the whole loop in small: recipes/quickstart
	$(BIN)/selfreward run recipes/quickstart/run.yaml $(ARGS)

install: $(STAMP) ## the environment alone

# No file stands for it: an environment may be kept where the system's packages are not.
install-cluster: $(STAMP) ## what test-cluster needs besides: DeepSpeed, and SLURM by apt-get as root
	requirements/cluster.sh $(VENV)

# Files are shared out whole, as the tests of one share engines and runs.
test: $(STAMP) ## set up, then the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not cluster" $(ARGS)

test-cluster: install-cluster ## the tests of several ranks, and on clusters made here: SLURM, Ray, two hosts
	$(BIN)/python -m pytest -m cluster --timeout 900 $(ARGS)

chaos: $(STAMP) ## kill, stop and starve runs at length, and compare: an hour
	$(BIN)/python tests/chaos.py $(ARGS)

bench-dedup: $(STAMP) ## the filter rouge_l against rouge_score: a minute or two
	$(BIN)/python tests/bench.py dedup $(ARGS)

lint: $(STAMP) ## ruff, mypy and the layers of rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP) ## rewrite docs/recipe.md from the settings
	$(BIN)/python -m selfreward.recipe.reference_docs > $(VENV)/recipe.md
	mv $(VENV)/recipe.md docs/recipe.md

lock: ## write what is installed to requirements/cpu.txt
	$(BIN)/python requirements/lock.py > $(VENV)/cpu.txt
	mv $(VENV)/cpu.txt requirements/cpu.txt
	touch $(STAMP)

tiny: $(STAMP) ## train the embedded tiny model anew
	$(BIN)/python scripts/tiny.py build $(ARGS)

$(STAMP): requirements/cpu.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "selfreward needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) has no venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing requirements/cpu.txt into $(VENV): about 4 GB, a minute or more"
	@$(PIP) install --quiet --no-deps -r requirements/cpu.txt
	@# A CUDA build can't be imported without its libraries, which the lock doesn't have.
	@$(BIN)/python -c 'import torch' 2> /dev/null || { echo "pip took a CUDA build of torch: installing its libraries, 2.5 GB more. requirements/README.md tells how to get the CPU build" >&2; $(PIP) install --quiet "$$(grep '^torch==' requirements/cpu.txt)"; }
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
