# One word per thing a contributor does. Each target makes the virtual environment it needs: `.venv`, or the
# active one (VIRTUAL_ENV), or the one named by VENV. A stamp keyed on pyproject.toml makes re-runs fast.

VENV ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
# The first interpreter on PATH that the package supports.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST_ARGS ?=
# Files side by side, each process with servers of its own: most tests wait for workers, not for a processor.
PYTEST_PROCESSES ?= 2

export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test check bench bench-quick overload hammer simulate chaos docs format clean

help:
	@echo "make demo     run the example pipeline, embedded: needs Python 3.11 to 3.13 and nothing else"
	@echo "make test     run every test against private PostgreSQL and RabbitMQ instances"
	@echo "make check    ruff, formatting, mypy, import contracts"
	@echo "make bench    this engine, Celery's canvas and other engines by turns, and what waiting, history and load cost; hours"
	@echo "make bench-quick  the same for two minutes"
	@echo "make simulate random histories of the engine under faults: HISTORIES=100000 SEED=7"
	@echo "make chaos    kill, freeze, wipe and restart everything while workflows run: CHAOS='--seconds 600 --seed 7'"
	@echo "make overload a hundred thousand messages and two slow workers: nothing floods, starves or grows"
	@echo "make hammer   eight engines on one workflow with a thousand stages, for a minute: no deadlock"
	@echo "make docs     build the documentation into build/site, every reference checked"
	@echo "make format   let ruff fix and format"
	@echo "make clean    remove what the other targets made"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 on PATH; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing stabilize-celery into $(VENV) ..."
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "Installing stabilize-celery[test] into $(VENV) ..."
	@$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing stabilize-celery[dev] into $(VENV) ..."
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

demo: $(VENV)/.installed
	@$(BIN)/python examples/data_pipeline.py

test: $(VENV)/.installed-test
	@config/install-services.sh
	@$(BIN)/python -m pytest tests --numprocesses $(PYTEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	@echo "Installing stabilize-celery[bench] into $(VENV) ..."
	@$(PIP) install --editable '.[bench]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

bench: $(VENV)/.installed-bench
	@config/install-services.sh
	@$(BIN)/python -m benchmarks --who ours,threads,no-inline,bare,canvas,canvas-redis,dbos --sizes 100,1000 $(BENCH)
	@$(BIN)/python -m benchmarks --who ours,no-inline,reference --shapes chain,fan --sizes 30 --name reference
	@$(BIN)/python -m benchmarks --who ours --sizes 100,3000,10000 --longest 600 --name large
	@$(BIN)/python -m benchmarks.latency
	@$(BIN)/python -m benchmarks.waiting
	@$(BIN)/python -m benchmarks.past
	@$(BIN)/python -m benchmarks.saturation
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.profile
	@$(BIN)/python -m benchmarks.targets

bench-quick: $(VENV)/.installed-test
	@config/install-services.sh
	@$(BIN)/python -m benchmarks --quick --into build/benchmarks/results
	@$(BIN)/python -m benchmarks.flower_page

HISTORIES ?= 20000
SEED ?= 100000
simulate: $(VENV)/.installed
	@$(BIN)/python -m stabilize_celery.testing.simulate --histories $(HISTORIES) --seed $(SEED) --jobs 2

CHAOS ?= --seconds 240 --workflows 200
chaos: $(VENV)/.installed-test
	@config/install-services.sh
	@$(BIN)/python -m tests.chaos $(CHAOS)

overload: $(VENV)/.installed-test
	@config/install-services.sh
	@OVERLOAD_MESSAGES=100000 $(BIN)/python -m pytest tests/concurrency/test_overload.py $(PYTEST_ARGS)

hammer: $(VENV)/.installed-test
	@config/install-services.sh
	@HAMMER_SECONDS=60 $(BIN)/python -m pytest tests/concurrency/test_hammer.py $(PYTEST_ARGS)

docs: $(VENV)/.installed-test
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/site

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
