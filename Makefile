# raft-pipelines: `make help` lists what can be made.

PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= run/demo
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench compile clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## documents to F1 chart on a tiny model, in minutes (DEMO=folder)
	$(BIN)/raft demo --output $(DEMO)

test: $(STAMP) ## run all tests
	$(BIN)/pytest

lint: $(STAMP) ## style, types, manifests, and the compiled pipeline
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/raft compile --check
	$(BIN)/raft check

format: $(STAMP) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run the benchmarks
	@for script in tests/benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

compile: $(STAMP) ## compile the pipeline to pipelines/raft.yaml
	$(BIN)/raft compile

clean: ## remove the virtual environment, caches and the demo's folder
	rm -rf $(VENV) $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: with it in place, nothing else pulls another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev --editable '.[all]'
	touch $@
