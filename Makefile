PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
INSTALLED := $(VENV)/.installed

.PHONY: install quickstart test test-fast coverage stress lint benchmark docs clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ast_lightning needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(INSTALLED)

quickstart: install
	$(BIN)/python train_experts.py experiment=digits_quickstart
	$(BIN)/python distill.py experiment=digits_quickstart
	$(BIN)/python evaluate.py experiment=digits_quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

test-fast: lint
	$(PYTEST) -q -m "not slow"

coverage: lint  # takes twice the time of test
	rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report=term

stress: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --kills 100 --scripts

benchmark: install
	$(BIN)/python -m benchmarks --small --output runs/benchmarks.md

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir site

clean:
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache
