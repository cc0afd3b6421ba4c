# Everything here needs Python 3.10 or newer, a C++ compiler and make; the rest goes into .venv.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
STAMP := $(VENV)/.stamp
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*)
FORMATTED := $(filter-out csrc/coefficients.inl, $(wildcard csrc/*.cpp csrc/*.hpp csrc/*.inl))

.PHONY: help demo test ptx lint bench sweep claims measure clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@awk -F ':.*## *' '/^[a-z]+:.*##/ {printf "make %-6s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)-demo  ## train on scikit-learn's digits, beside NumPy and scikit-learn
	@$(VENV)/bin/python -m pyfastnn demo

test: $(STAMP)-test  ## run the tests; PYTEST_ARGS="-k name" picks some
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

ptx: $(STAMP)-ptx  ## compile every CUDA kernel, without a GPU (downloads NVIDIA's compiler, some hundred MB)
	@$(VENV)/bin/python -m pytest tests/test_cuda_compile.py

lint: $(STAMP)-lint  ## check style, types and spelling
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(FORMATTED)
	$(VENV)/bin/codespell --skip build,dist

bench:  ## time everything beside the peers (20 to 30 minutes); QUICK=1: about 5; AVX2=1: without AVX-512; NAME=... names the results
	@$(MAKE) --no-print-directory VENV=.venv-bench SCRIPT=run.py measure

sweep:  ## time kernels on a grid of shapes, and training of many networks (15 minutes); AVX2=1, NAME=... as above
	@$(MAKE) --no-print-directory VENV=.venv-bench SCRIPT=sweep.py measure

claims: $(STAMP)-test  ## time what bench does not show: threads, neighbours, dtypes; NAME=... names the results
	@$(VENV)/bin/python benchmarks/claims.py $(if $(NAME),--name $(NAME))

# In an environment of its own: the peers are large.
measure: $(STAMP)-bench
	@$(VENV)/bin/python benchmarks/$(SCRIPT) $(if $(QUICK),--quick) $(if $(AVX2),--avx2) $(if $(NAME),--name $(NAME))

clean:  ## remove what was built, .venv included
	rm -rf $(VENV) .venv-bench build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Stamps: the environment, the package in it (compiled anew when its sources change; Python files
# are used where they lie), and the extras that a target needs. A package without its compiled core gets
# no stamp, so that the next call tries again.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "pyfastnn needs Python 3.10 or newer as $(PYTHON); another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "could not create $(VENV): install Python's venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PIP) 'pip>=21.3'
	@touch $@

$(STAMP)-package: $(STAMP) $(SOURCES)
	@echo "compiling pyfastnn"
	@$(PIP) --editable .
	@$(VENV)/bin/python -c 'import pyfastnn._core' 2>/dev/null && touch $@ || \
	  echo "no C++ core, NumPy does its work; PYFASTNN_REQUIRE_EXT=1 make $(MAKECMDGOALS) says why" >&2

$(STAMP)-%: $(STAMP)-package
	@echo "installing what 'make $*' needs"
	@$(PIP) 'pyfastnn[$*]'
	@touch $@
