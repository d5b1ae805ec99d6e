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
HOSTS ?= 2
MEMBERS ?= 2
RATE ?= 200mbit,1gbit,2gbit
TOWER_RATE ?=
PNG ?= bench_cluster.png
WORKERS ?= 2
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

.PHONY: help build demo test cuda-check bench bench-cluster bench-quality lint format clean which-python
.PHONY: sanitize sanitize-build sanitize-kernels sanitize-ops sanitize-threads
.DEFAULT_GOAL := help

help: ## Show this text
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 15
	@echo 'Variables: TORCH="torch==2.13.0 [pip options]", DATA=synthetic|criteo:PATH|npz:PATH, OUT=demo_out, PYTHON=python'
	@echo '           of test: PYTEST="tests/ops -k bag" WORKERS=2 (processes that share the files of tests)'
	@echo '           of bench-cluster: HOSTS=2 MEMBERS=2 RATE=200mbit,1gbit,2gbit TOWER_RATE=9x PNG=bench_cluster.png'
	@echo '           of bench-quality: DATA, QUALITY="--jobs 8 --out DIR --towers 2 4 --compressions 2" (python -m bench.quality --help)'

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
	@$(PY) setup.py -q build_ext --inplace  # pip would compile, too, but for minutes without a word
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
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

# What runs on one core leaves the other one to what is beside it.
sanitize: $(ENVIRONMENT) ## Test kernels and ops under g++'s address, undefined-behavior and thread sanitizers
	@$(MAKE) --no-print-directory -O -j 3 sanitize-kernels sanitize-ops sanitize-threads

# The kernels and, in a copy of the package without the engine, the ops that call them.
sanitize-build: $(ENVIRONMENT)
	@rm -rf $(SANITIZED)/package
	@DMT_SANITIZE=address,undefined DMT_BEST_ISA="$${DMT_BEST_ISA:-$(ISA_IN_USE)}" DMT_COMM=off DMT_TESTS=$(SANITIZED)/address \
	  $(PY) setup.py -q build_py -d $(SANITIZED)/package build_ext -b $(SANITIZED)/package

sanitize-kernels: sanitize-build
	$(FIXED_ADDRESSES) $(SANITIZED)/address/kernel_tests

sanitize-ops: sanitize-build
	@cp -r tests pyproject.toml $(SANITIZED)/package
	@python="$$($(PY) -c 'import sys; print(sys.executable)')" && cd $(SANITIZED)/package && export $(UNDER_ASAN) && \
	  $(FIXED_ADDRESSES) "$$python" -m dmt_kernels info | grep 'sanitize  *address' && \
	  $(FIXED_ADDRESSES) "$$python" -m pytest -q --capture=sys -p no:cacheprovider -n $(WORKERS) --dist loadfile \
	    -k 'not compile and not all_to_all and not never_exists' $(TESTS_OF_KERNELS)

# The kernels on threads that ThreadSanitizer follows; what threads share is the same in all copies of the kernels.
sanitize-threads: $(ENVIRONMENT)
	@export PATH="$(dir $(PY)):$$PATH" DMT_TESTS=$(SANITIZED)/thread && \
	  cmake -G Ninja -S . -B $$DMT_TESTS/build -DDMT_SANITIZE=thread -DDMT_BEST_ISA=baseline -DDMT_TESTS=$$DMT_TESTS \
	    > /dev/null && \
	  cmake --build $$DMT_TESTS/build -j "$${MAX_JOBS:-$$(nproc)}"
	TSAN_OPTIONS=halt_on_error=1 $(FIXED_ADDRESSES) $(SANITIZED)/thread/kernel_tests --cases 100

cuda-check: $(ENVIRONMENT) ## Compile the CUDA kernels (nvcc, no GPU) and compare their registers with csrc/kernels/cuda/registers.txt
	$(PY) tests/cuda/registers.py build/cuda-check

bench: build ## Measure ops, exchange and training step beside their peers; BENCH="ops --filter S1"
	$(PY) -m bench $(BENCH)

bench-cluster: build ## Measure training steps between emulated hosts (root)
	$(PY) -m bench.cluster --hosts $(HOSTS) --members $(MEMBERS) --rate '$(RATE)' --tower-rate '$(TOWER_RATE)' --plot '$(PNG)'

bench-quality: build ## Train flat and multi-tower models on DATA and compare their AUC (hours; goes on where it ended)
	$(PY) -m bench.quality --data '$(DATA)' $(QUALITY)

format: $(ENVIRONMENT) ## Rewrite the sources in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	@$(CLANG_FORMAT) -i $(CXX_FILES)

clean: ## Remove builds and caches, keep .venv
	rm -rf build dist *.egg-info dmt_kernels/_*.so dmt_kernels/_lib demo_out bench_cluster.png
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

which-python: $(ENVIRONMENT)
	@echo $(PY)

SANITIZED := build/sanitize
# Copies of the kernels that this machine does not run would not be tested.
ISA_IN_USE = $(shell $(PY) -c 'import torch; from dmt_kernels import _C; print(_C.isa())' 2>/dev/null)
# Python is not built with the sanitizer, so its runtime goes before all else, and with it libstdc++, whose exceptions it watches.
# Python's own leaks do not matter. (pytest above leaves file descriptor 2 alone: reports go there.)
UNDER_ASAN = LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
             ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
# Older runtimes fail where the kernel spreads addresses widely; it is asked not to, where that is allowed.
FIXED_ADDRESSES = $(shell setarch -R true 2>/dev/null && echo setarch -R)
# The Python tests of the same stems, but for the comparison with a foreign library. (Those that start a compiler or other processes,
# and the peak of memory, which is the sanitizer's here, are left out above: they tell nothing more about the kernels.)
TESTS_OF_KERNELS = $(filter-out %fbgemm.py,$(sort $(wildcard $(patsubst tests/csrc/%.cpp,tests/ops/%*.py,$(wildcard tests/csrc/test_*.cpp)))))

CLANG_FORMAT = $(PY) -c 'import clang_format; clang_format.clang_format()'
