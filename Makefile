# Two commands need no preparation: `make demo` and `make test`. The first one makes an environment, which takes minutes;
# later ones only rebuild what changed.
#
# Which Python runs things depends on the python on the PATH (or PYTHON=...):
#   it is an active virtualenv with torch   that virtualenv; what is missing is installed into it
#   it has torch otherwise (a container)    .venv, made so that it sees that torch and what belongs to it
#   it has no torch                         .venv, with $(TORCH) installed there
# In no case does pip get to replace a torch that is there.

TORCH ?= torch==2.13.0
DATA ?= synthetic
OUT ?= demo_out
PYTHON ?= $(firstword $(shell command -v python; command -v python3))

# "active", "system" or "none", and the prefix of the calling Python.
PROBE := import importlib.util as u, sys; assert sys.version_info >= (3, 10); torch = u.find_spec("torch"); \
         print("none" if not torch else "system" if sys.prefix == sys.base_prefix else "active", sys.prefix)
CALLER := $(if $(PYTHON),$(shell $(PYTHON) -c '$(PROBE)' 2>/dev/null))
KIND := $(word 1,$(CALLER))
ifeq ($(KIND),)
  $(error "$(PYTHON)" is no Python of version 3.10 or later; put one on the PATH or give PYTHON=/path/to/python)
endif
PY := $(if $(filter active,$(KIND)),$(PYTHON),.venv/bin/python)
PIP := $(PY) -m pip --disable-pip-version-check
SEES_SYSTEM := $(if $(filter system,$(KIND)),true,false)

# The stamp's name holds what the environment was made from, so another Python or another TORCH prepares it again. It lies in
# .venv where that is ours, and goes with it.
NAME := $(shell printf '%s' '$(KIND) $(word 2,$(CALLER)) $(if $(filter none,$(KIND)),$(TORCH))' | tr -c 'A-Za-z0-9.=' '_')
ENVIRONMENT := $(if $(filter active,$(KIND)),build,.venv)/environment/$(NAME)
CXX_FILES := $(shell find csrc bench tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu' 2>/dev/null)

.PHONY: help build demo test bench lint format clean which-python
.DEFAULT_GOAL := help

help: ## Show this text
	@grep -hE '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 10
	@echo 'Variables: TORCH="torch==2.13.0 [pip options]", DATA=synthetic|criteo:PATH|npz:PATH, OUT=demo_out, PYTHON=python'

# A .venv of the wrong kind, or with another torch than the calling Python's, is made anew.
$(ENVIRONMENT): pyproject.toml
ifneq ($(KIND),active)
	@grep -qs 'include-system-site-packages = $(SEES_SYSTEM)' .venv/pyvenv.cfg || $(PYTHON) -m venv --clear $(if $(filter true,$(SEES_SYSTEM)),--system-site-packages) .venv
endif
ifeq ($(KIND),system)
	@origin='import importlib.util as u; print(u.find_spec("torch").origin)'; \
	 test "$$($(PYTHON) -c "$$origin")" = "$$($(PY) -c "$$origin")" || $(PYTHON) -m venv --clear --system-site-packages .venv
endif
ifeq ($(KIND),none)
	@requirement='$(TORCH)'; set -f; $(PIP) install $$requirement
endif
	@mkdir -p $(@D)
	@$(PY) -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' > $@.constraint
	$(PIP) install -q -c $@.constraint 'setuptools>=77' 'cmake>=3.26' ninja 'pybind11>=2.13'
	$(PIP) install -q -c $@.constraint --no-build-isolation -e '.[train,dev]'
	@touch $@

build: $(ENVIRONMENT) ## Compile csrc into the source tree
	@$(PY) setup.py -q build_ext --inplace

demo: build ## Train flat DLRM and its DMT twin in four processes and compare them
	$(PY) -m dmt_kernels demo --data '$(DATA)' --out '$(OUT)'

lint: $(ENVIRONMENT) ## Check format, style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@$(CLANG_FORMAT) --dry-run -Werror $(CXX_FILES)
	$(PY) -m mypy

test: export DMT_TESTS = $(CURDIR)/build/tests
test: lint build ## Lint, build, run the tests
	build/tests/kernel_tests
	$(PY) -m pytest $(PYTEST)

bench: build ## Measure ops, exchange and training step beside their peers; BENCH="ops --filter S1"
	$(PY) -m bench $(BENCH)

format: $(ENVIRONMENT) ## Rewrite the sources in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	@$(CLANG_FORMAT) -i $(CXX_FILES)

clean: ## Remove builds and caches, keep .venv
	rm -rf build dist *.egg-info dmt_kernels/_C*.so dmt_kernels/_lib demo_out
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

which-python: $(ENVIRONMENT)
	@echo $(PY)

CLANG_FORMAT = $(PY) -c 'import clang_format; clang_format.clang_format()'
