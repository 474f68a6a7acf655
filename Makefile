# Needs Python 3.11 or newer with pip, and make; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a green tree slides left slowly in the snow
SEED ?= 0
OUT ?= outputs
# The shell reads it from the environment, so that a prompt may hold quotes.
export PROMPT
# More arguments of the one "pip install torch": --index-url with PyTorch's own index of CPU builds saves a Linux machine
# without an NVIDIA card a download of gigabytes.
TORCH_ARGS ?=

# The tests' networks are tiny: a process for each core is far faster than threads. Files stay together, for their fixtures.
TEST_WORKERS ?= --numprocesses auto --maxprocesses 8 --dist loadfile

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

.PHONY: demo gallery test test-all check venv clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready
	@$(PY) -m lumiere generate "$$PROMPT" --seed $(SEED) --out "$(OUT)"

gallery: $(VENV)/.ready
	$(PY) examples/gallery.py

test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q $(TEST_WORKERS) -m "not slow"

test-all: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q $(TEST_WORKERS)

check: $(VENV)/.ready-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_architecture.py

venv: $(VENV)/.ready-dev

# The stamps make a second call instant; a call that was cut short is taken up again by the next.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lumiere needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (say which: make PYTHON=python3.12)")'
	@echo "Building the environment in $(VENV), once; this takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@echo "1 of 2: torch"
	@$(PIP) -c constraints.txt $(TORCH_ARGS) torch==2.13.0 setuptools
	@echo "2 of 2: lumiere and the other libraries"
	@$(PIP) -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "The tools for tests and checks"
	@$(PIP) -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
