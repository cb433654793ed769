# Two commands for a newcomer: `make demo` runs the main job, `make test` passes the tests.
# Each sets up .venv by itself, pinned by constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# One BLAS thread a process: the tests start processes of their own.
THREADS := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test slow stress check format lint types bench clean

help: ## List the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found. Install it, or run: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "this Python cannot make virtual environments: installing the Debian package python3-venv"; \
		if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv; \
		else sudo apt-get update -qq && sudo apt-get install -y -qq python3-venv; fi; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/installed ## Make .venv with simtool and everything the tests need.

demo: $(VENV)/installed ## The whole path on the digits data: train, extract, sparsify, evaluate, report.
	$(BIN)/simtool demo

test: $(VENV)/installed ## The tests.
	$(THREADS) $(BIN)/python -m pytest -q -n 2

slow: $(VENV)/installed ## The slowest tests on real parts: Ray, SLURM, kills, fuzzed readers.
	$(THREADS) $(BIN)/python -m pytest -q -m "slow and not stress"

stress: $(VENV)/installed ## Full counts: kills, fuzzed inputs, failing writes, referee rows, random problems (two hours).
	$(THREADS) HYPOTHESIS_PROFILE=default $(BIN)/python -m pytest -q -m stress

check: lint types test slow ## Everything continuous integration runs.

format: $(VENV)/installed ## Rewrite the code in the project's format.
	$(BIN)/ruff format simtool tests examples
	$(BIN)/ruff check --fix simtool tests examples

lint: $(VENV)/installed ## Format and lint, changing nothing.
	$(BIN)/ruff format --check simtool tests examples
	$(BIN)/ruff check simtool tests examples

types: $(VENV)/installed ## Static types.
	$(BIN)/mypy simtool

$(VENV)/bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

trained/mlp.onnx: $(VENV)/installed
	$(BIN)/python examples/train_mlp.py -o trained

bench: $(VENV)/bench trained/mlp.onnx ## The row solver, the engines and the models beside their peers (two hours); report in bench-report.
	$(THREADS) $(BIN)/simtool bench rows --case all --network trained/mlp.onnx --figure gap --figure thesis -o bench-report --overwrite
	$(THREADS) $(BIN)/simtool bench engines --network trained/mlp.onnx -o bench-report/engines --overwrite
	$(THREADS) $(BIN)/simtool bench quality -o bench-report/quality --overwrite

clean: ## Remove what the targets made.
	rm -rf $(VENV) simtool-demo bench-report build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
