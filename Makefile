# Two commands are enough: `make demo` sets everything up and runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
# A file's tests stay in one process; one thread each, so that processes do not wait for each other's cores.
SPREAD := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

CALIBRATIONS := calibration
# What runs long calls the same functions thousands of times; their shapes are checked by `make test`.
UNCHECKED := -o addopts="--import-mode=importlib -ra"

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow demonstration calibrate bench check lint types layers format ui clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.run  ## train a network that groks, analyse every checkpoint, write the report
	$(BIN)/mechint demo

test: $(VENV)/.test  ## the tests, without slow ones, oracles and benchmarks
	$(SPREAD) -m "not slow and not oracle and not benchmark and not calibration"

test-slow: $(VENV)/.oracle  ## the slow tests, calibrations, and comparisons with other implementations
	$(MAKE) --jobs=2 demonstration calibrate CALIBRATIONS="calibration and not thorough"
	$(SPREAD) $(UNCHECKED) -m "(slow or oracle) and not benchmark and not calibration" --ignore=tests/flows

demonstration: $(VENV)/.oracle  ## the slow tests of the flows, one after the other: some of them time what they run
	$(PYTEST) $(UNCHECKED) -m "(slow or oracle) and not benchmark" tests/flows

# Hundreds of simulated experiments for each claim, with what cores the demonstration leaves.
calibrate: $(VENV)/.oracle  ## are p-values uniform where nothing is there, do intervals cover? (20 minutes)
	OMP_NUM_THREADS=1 nice -n 19 $(PYTEST) $(UNCHECKED) -n 2 --timeout=3600 -m "$(CALIBRATIONS)"

bench: $(VENV)/.oracle  ## ratios to peers and floors, on a quiet machine; writes docs/reference/benchmarks.md
	OMP_NUM_THREADS=1 $(PYTEST) $(UNCHECKED) -m benchmark tests/benchmarks

check: lint types layers test  ## everything a change must pass

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell mechint_core tasks flows tests docs deployments *.md

types: $(VENV)/.test
	$(BIN)/basedpyright

layers: $(VENV)/.test
	$(BIN)/lint-imports

format: $(VENV)/.test  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ui: $(VENV)/.run  ## the Prefect and MLflow pages, on this machine only
	$(BIN)/mechint ui

clean:  ## remove the environment, caches and the data folder
	rm -rf $(VENV) mechint-data .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) --editable '.[test,lint]'
	@touch $@

# Without their dependencies: together they name forty packages (wandb, plotly, nltk, umap, an nnsight of 2024) for
# parts of them that no comparison imports. What the compared parts do import is in the oracle extra; see tests/peers.py.
PEERS := sae-lens transformer-lens dictionary-learning
$(VENV)/.oracle: $(VENV)/.test
	$(PIP) --editable '.[test,lint,oracle]'
	$(PIP) --no-deps $(PEERS)
	@touch $@
