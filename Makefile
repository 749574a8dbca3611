# One word per thing a contributor does. Each target makes the virtual environment it needs: `.venv`, or the
# active one (VIRTUAL_ENV), or the one named by VENV. A stamp keyed on pyproject.toml and the lock makes re-runs fast.

VENV ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
# The first interpreter on PATH that the package supports.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# What is installed: the releases of the lock, each with its hash. `LOCKED=no` takes the newest of everything.
LOCKED ?= yes
PYTEST_ARGS ?=
# Files side by side, each process with servers of its own: most tests wait for workers, not for a processor.
PYTEST_PROCESSES ?= 2

export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test test-fast test-served compat compat-oldest compat-newest compat-run lock check bench bench-quick explore dags explore-faults mutations overload hammer simulate chaos docs format clean stops

help:
	@echo "make demo     run the example pipeline, embedded: needs Python 3.11 or newer and nothing else"
	@echo "make test     run every test against private PostgreSQL and RabbitMQ instances"
	@echo "make test-fast    what needs no server: under two minutes"
	@echo "make compat   the oldest supported releases, and the newest of everything"
	@echo "make lock     lock the newest releases of what pyproject.toml asks for"
	@echo "make check    ruff, formatting, mypy, import contracts, the size that may only fall (config/house.py)"
	@echo "make bench    this engine, Celery's canvas and other engines by turns, and what waiting, history and load cost; hours"
	@echo "make bench-quick  the same for two minutes"
	@echo "make simulate random histories of the engine under faults: HISTORIES=100000 SEED=7"
	@echo "make stops    every way of stopping a worker, on every pool, with every kind of body: an hour"
	@echo "make chaos    kill, freeze, wipe and restart everything while workflows run: CHAOS='--seconds 600 --seed 7'"
	@echo "make overload a hundred thousand messages and two slow workers: nothing floods, starves or grows"
	@echo "make explore  transactions interleaved statement by statement: SCHEDULES=20000 SEED=7, EXPLORE=--pairs for the list"
	@echo "make dags     random graphs on four threads, each against the same one message after the other: DAGS=2000 SEED=7"
	@echo "make explore-faults  faults put back on purpose: each is found within 2,000 schedules"
	@echo "make mutations  dangerous changes of the engine, one after the other: the tests that each names must fail"
	@echo "make hammer   eight engines on one workflow with a thousand stages, for a minute: no deadlock"
	@echo "make docs     build the documentation into build/site, every reference checked"
	@echo "make format   let ruff fix and format"
	@echo "make clean    remove what the other targets made"

comma := ,

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer on PATH; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

ifeq ($(LOCKED),yes)
install = $(PIP) install --require-hashes --requirement config/locked/$(1).txt && \
	$(PIP) install --no-deps --no-build-isolation --editable .
else
install = $(PIP) install --upgrade --upgrade-strategy eager --editable '.[$(2)]'
endif

$(VENV)/.installed: pyproject.toml config/locked/core.txt | $(BIN)/python
	@echo "Installing stabilize-celery into $(VENV) ..."
	@$(call install,core,build)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml config/locked/dev.txt | $(BIN)/python
	@echo "Installing stabilize-celery[dev] into $(VENV) ..."
	@$(call install,dev,dev$(comma)bench)
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/python examples/data_pipeline.py

# Nothing to install but Python packages: no server, no browser, no worker.
test-fast: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest tests --numprocesses $(PYTEST_PROCESSES) --dist loadfile -m 'not served and not slow' $(PYTEST_ARGS)

test-served: $(VENV)/.installed-dev
	@config/install-services.sh
	@$(BIN)/python -m pytest tests --numprocesses $(PYTEST_PROCESSES) --dist loadfile -m 'served or slow' $(PYTEST_ARGS)

test: $(VENV)/.installed-dev
	@config/install-services.sh
	@$(BIN)/python -m pytest tests --numprocesses $(PYTEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

# The oldest releases that pyproject.toml allows, and the newest of everything on the newest Python with PostgreSQL 18,
# each in an environment of its own.  COMPAT='tests/conformance' runs less.
COMPAT ?= tests/unit tests/conformance tests/integration/workers
compat: compat-oldest compat-newest

compat-oldest:
	@config/install-services.sh
	@test -x build/oldest/bin/python || $(PYTHON) -m venv build/oldest
	@$(MAKE) --no-print-directory compat-run VENV=build/oldest LOCK=oldest

NEWEST_PYTHON ?= $(shell ls -1d $(HOME)/.pyenv/versions/3.13.*/bin/python 2>/dev/null | tail -n 1 | grep . || echo $(PYTHON))
compat-newest:
	@config/install-services.sh
	@test -x build/newest/bin/python || $(NEWEST_PYTHON) -m venv build/newest
	@$(MAKE) --no-print-directory compat-run VENV=build/newest LOCK= STABILIZE_TEST_POSTGRES=wheel

compat-run:
	@$(if $(LOCK),$(PIP) install --require-hashes --requirement config/locked/$(LOCK).txt && \
		$(PIP) install --no-deps --no-build-isolation --editable ., \
		$(PIP) install --upgrade --upgrade-strategy eager --editable '.[test]')
	@env -u VIRTUAL_ENV STABILIZE_TEST_POSTGRES=$(STABILIZE_TEST_POSTGRES) $(BIN)/python -m pytest $(COMPAT) --numprocesses $(PYTEST_PROCESSES) --dist loadfile \
		-W 'default::DeprecationWarning' $(PYTEST_ARGS)

# The lock of the gate, the oldest releases that are supported: after a change of pyproject.toml, and by a scheduled update.
COMPILE = $(BIN)/uv --quiet pip compile --generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade pyproject.toml
lock: | $(BIN)/python
	@$(PIP) install uv
	@$(COMPILE) --universal --python-version 3.11 --extra dev --extra bench --output-file config/locked/dev.txt
	@$(COMPILE) --universal --python-version 3.11 --extra build --constraint config/locked/dev.txt --output-file config/locked/core.txt
	@$(COMPILE) --python-version 3.11 --resolution lowest-direct --extra test --output-file config/locked/oldest.txt

# Every way of stopping a worker, on every pool, with every kind of body: about an hour.
stops: $(VENV)/.installed-dev
	@config/install-services.sh
	@STOPS=all $(BIN)/python -m pytest tests/integration/workers/test_stops.py $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python config/house.py

bench: $(VENV)/.installed-dev
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

bench-quick: $(VENV)/.installed-dev
	@config/install-services.sh
	@$(BIN)/python -m benchmarks --quick --into build/benchmarks/results
	@$(BIN)/python -m benchmarks.flower_page

HISTORIES ?= 20000
SEED ?= 100000
simulate: $(VENV)/.installed
	@$(BIN)/python -m tests.simulation --histories $(HISTORIES) --seed $(SEED) --jobs 2

CHAOS ?= --seconds 240 --workflows 200
chaos: $(VENV)/.installed-dev
	@config/install-services.sh
	@$(BIN)/python -m tests.chaos $(CHAOS)

explore: $(VENV)/.installed-dev
	@config/install-services.sh
	@$(BIN)/python -m tests.interleaving.explore --seed $(or $(SEED),0) --schedules $(or $(SCHEDULES),20000) $(EXPLORE)

dags: $(VENV)/.installed-dev
	@config/install-services.sh
	@STABILIZE_DAGS=$(or $(DAGS),2000) STABILIZE_DAGS_SEED=$(or $(SEED),0) \
		$(BIN)/python -m pytest tests/interleaving/test_random_dags.py -k one_message_after $(PYTEST_ARGS)

explore-faults: $(VENV)/.installed-dev
	@config/install-services.sh
	@STABILIZE_EXPLORE_FAULTS=all $(BIN)/python -m pytest tests/interleaving/test_put_back.py $(PYTEST_ARGS)

mutations: $(VENV)/.installed-dev
	@config/install-services.sh
	@$(BIN)/python -m tests.mutations $(MUTATIONS)

overload: $(VENV)/.installed-dev
	@config/install-services.sh
	@OVERLOAD_MESSAGES=100000 $(BIN)/python -m pytest tests/concurrency/test_overload.py $(PYTEST_ARGS)

hammer: $(VENV)/.installed-dev
	@config/install-services.sh
	@HAMMER_SECONDS=60 $(BIN)/python -m pytest tests/concurrency/test_hammer.py $(PYTEST_ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/site

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
