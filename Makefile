# Everything a fresh machine with Python 3.11 and pip needs: each target installs first where it has to.
PYTHON ?= python3.11
SYSTEM_PYTHON := $(shell command -v $(PYTHON) || command -v python3)
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
TEST := $(BIN)/python -m pytest --numprocesses 2

.PHONY: install demo test test-fast lint bench docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(SYSTEM_PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,quant,kernels]"
	touch $@

demo: install
	OMP_NUM_THREADS=$${DEMO_THREADS:-2} $(BIN)/soka demo

test: install
	$(TEST)

test-fast: install
	$(TEST) -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks

# What is written from the schema: the reference of all options, and the JSON schema that editors read.
docs: install
	$(BIN)/soka recipes reference > docs/recipe.md
	$(BIN)/soka recipes schema > configs/recipe.schema.json

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
