# `make compare` sets everything up and runs the main job; `make test` sets everything up and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs
JOBS ?= 2
SEEDS ?= 2
GALLERY ?= 1
DIST ?= dist
METHODS ?= ls,si,rlw,dwa,uw,famo,nash-mtl,fairgrad,imtl-g,ntkmtl,ntkmtl-sr,ntkmtl-tk,ntkmtl-auto

.PHONY: help compare test unit cover slow lint types docs site dist bench faults sbom audit clean

help:
	@echo "make compare   install, train and compare on real molecules, print the table, draw the page"
	@echo "make test      install and run the tests"
	@echo "make unit      the library's tests alone, in minutes"
	@echo "make cover     the same, with the lines that they reach"
	@echo "make slow      the tests that take minutes"
	@echo "make lint types docs   checks of style, types and of every example in the docs"
	@echo "make site      the documentation site, in build/site; GALLERY=0 leaves the gallery unexecuted"
	@echo "make dist      wheel and sdist in dist, checked"
	@echo "make bench     cost of one step against plain training"
	@echo "make faults    every fault of docs/reliability.md, made on purpose"
	@echo "make sbom      bill of materials of the pinned versions, CycloneDX"
	@echo "make audit     ask the Python advisory database about them"

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

UNIT := tests/graph tests/kernel tests/weighting tests/balance tests/analysis tests/integrations tests/watch \
	tests/test_metrics.py tests/test_files.py tests/test_layout.py

unit: $(VENV)/.dev
	$(BIN)/python -m pytest $(UNIT) -m 'not slow and not integration'

cover: $(VENV)/.dev
	$(BIN)/python -m pytest $(UNIT) -m 'not slow and not integration' --cov=ntkmtl --cov-report=term

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python -m pytest --doctest-modules src/ntkmtl
	$(BIN)/python -m pytest README.md docs

# Nothing is fetched. Examples of the gallery that did not change are not executed again.
site: $(VENV)/.dev
	OMP_NUM_THREADS=1 GALLERY=$(GALLERY) $(BIN)/python -m sphinx -c docs -b html -q -W --keep-going . build/site
	@echo "build/site/index.html"

# Pinned and without isolation: the same commit gives the same bytes.
$(VENV)/release/.done: Makefile
	test -x $(VENV)/release/bin/python || $(PYTHON) -m venv $(VENV)/release
	$(VENV)/release/bin/python -m pip install --quiet --disable-pip-version-check \
		build==1.6.1 twine==7.0.0 hatchling==1.33.0 hatch-vcs==0.5.0 setuptools-scm==10.3.4
	touch $@

dist: $(VENV)/release/.done
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		$(VENV)/release/bin/python -m build --no-isolation --outdir $(DIST) .
	$(VENV)/release/bin/twine check --strict $(DIST)/*

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/step_cost.py

faults: $(VENV)/.dev
	$(BIN)/python benchmarks/reliability.py

# Tools that look at the pins have pins of their own, and a place where they change none of ours.
$(VENV)/audit/.done: constraints.txt
	test -x $(VENV)/audit/bin/python || $(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check \
		cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@

sbom: $(VENV)/audit/.done
	mkdir -p build
	$(VENV)/audit/bin/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml \
		--mc-type library --output-reproducible -o build/sbom.cdx.json 2> build/sbom.log \
		|| { cat build/sbom.log; exit 1; }
	@echo "build/sbom.cdx.json"

audit: $(VENV)/audit/.done
	$(VENV)/audit/bin/python scripts/audit.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
