# make conformance   the main job: every installed backend and mode against NumPy, bit for bit
# make test          linter, types and all tests
# make test-quick    linter, types, the core, and one case in every mode: for daily work, under five minutes
# make test-cross    the port in C and magma_native for other processors, in an emulator, and by other compilers: part of
#                    make test, which skips what lacks its compiler or emulator, as this says; MAGMA_CROSS=required fails
# make test-fuzz     random cases for two minutes, the same ones every time: part of make test, too
# make test-triton   those of the PyTorch optimizer alone, by the kernels for GPUs in Triton's interpreter
# make test-keras    those of the Keras optimizers alone, on each backend of Keras
# make test-trainers those in Accelerate, Lightning and the Hugging Face Trainer alone
# All set everything up in .venv first; a second call finds it there.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n 2 --dist worksteal
# Runs of one process each take one core each, the longest first; their lines say whose they are.
SIDE_BY_SIDE := --no-print-directory --jobs 2
export PYTHONUNBUFFERED := 1
NAMED = 2>&1 | awk '{ print "$@: " $$0; fflush() }'
QUICK := adam/magma/vector/*

# Steps in C are compiled once for all processes of the tests and of their next run.
test test-quick test-fuzz test-keras test-triton test-trainers: export MAGMA_CACHE ?= $(CURDIR)/$(VENV)/magma-cache
test test-quick test-fuzz test-keras: export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: conformance test test-quick lint types test-cross test-fuzz test-triton test-keras test-trainers setup clean

conformance: setup
	$(BIN)/magma-conformance run

test: setup $(VENV)/.trainers lint
	$(MAKE) $(SIDE_BY_SIDE) types keras-jax keras-tensorflow test-triton keras-torch test-trainers
	$(PYTEST)

# Of the core without what compiles: the case, which almost every mode takes, does that.
test-quick: setup lint types
	$(PYTEST) tests/core $(addprefix --ignore=tests/core/test_,compiled.py fences.py odd_names.py special_numbers.py stacked_fences.py)
	$(BIN)/magma-conformance run --case '$(QUICK)'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy $(NAMED)

test-fuzz: setup
	$(PYTEST) tests/conformance/test_random_cases.py

test-cross: setup
	$(BIN)/pytest -rs tests/conformance/test_cross.py tests/native/test_cross.py

# What compile=True is on a GPU, on the CPU: NumPy stands in for the device, and warns of what overflows there.
test-triton: setup
	TRITON_INTERPRET=1 $(BIN)/pytest -W ignore::RuntimeWarning tests/torch/test_optimizer.py \
	  tests/torch/test_state_file.py tests/torch/test_lr_scale.py $(NAMED)

# Three runs, for Keras settles its backend when it is imported.
test-keras: setup
	$(MAKE) $(SIDE_BY_SIDE) keras-jax keras-tensorflow keras-torch

keras-%: setup
	KERAS_BACKEND=$* $(BIN)/pytest tests/keras $(NAMED)

test-trainers: $(VENV)/.trainers
	$(BIN)/pytest tests/trainers $(NAMED)

setup: $(VENV)/.ready

# torch first: the pinned CPU build, before anything that depends on torch could bring in another one.
$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install Python 3.11 or later, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) --version) is too old: 3.11 or later is needed, say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "make: $(PYTHON) has no venv module: on Debian install python3-venv" >&2; exit 1; }
	@command -v c++ >/dev/null || echo "make: there is no C++ compiler: torch.compile cannot run and will be reported as not run" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The same environment: the constraints keep everything that is there already as it is.
$(VENV)/.trainers: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trainers]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
