PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0

.PHONY: demo test lint bench figures docs clean

demo: $(VENV)/.warm
	@$(BIN)/equipoise demo

test: $(VENV)/.test
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.lint
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python benchmarks/bench_planning.py

# Draws the figures in docs/images anew.
figures: $(VENV)/.docs
	@$(BIN)/python docs/figures.py

# The API reference, from the docstrings, as pages in build/docs.
docs: $(VENV)/.docs
	@$(BIN)/python docs/reference.py build/docs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Equipoise needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet -e .
	@touch $@

$(VENV)/.warm: $(VENV)/.installed $(wildcard src/equipoise/planning/*.py src/equipoise/search/*.py)
	@$(BIN)/equipoise warmup
	@touch $@

# torch is pinned here so that the tests get one known build; users may have any version from 2.1 on.
$(VENV)/.test: $(VENV)/.installed
	$(BIN)/pip install --quiet torch==$(TORCH)
	$(BIN)/pip install --quiet -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/pip install --quiet -e '.[lint]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
