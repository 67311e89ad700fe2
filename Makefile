# `make compare` sets everything up and runs the main job; `make test` sets everything up and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs
JOBS ?= 2
SEEDS ?= 2
METHODS ?= ls,si,rlw,dwa,uw,famo,nash-mtl,fairgrad,imtl-g,ntkmtl,ntkmtl-sr,ntkmtl-tk

.PHONY: help compare test slow lint types docs bench clean

help:
	@echo "make compare   install, train and compare on real molecules, print the table, draw the page"
	@echo "make test      install and run the tests"
	@echo "make slow      the tests that take minutes"
	@echo "make lint types docs   checks of style, types and of every example in the docs"
	@echo "make bench     cost of one step against plain training"

# Pinned versions, so that a machine set up next year gets what was tested.
$(VENV)/.bench: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

$(VENV)/.dev: $(VENV)/.bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

compare: $(VENV)/.bench
	$(BIN)/ntkmtl compare qm9-mini --methods $(METHODS) --seeds $(SEEDS) --jobs $(JOBS) --out $(OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python -m pytest --doctest-modules src/ntkmtl
	$(BIN)/python -m pytest README.md docs

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/step_cost.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
