# Everything runs in .venv, which is made here; `demo` and `test` need nothing but python3 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS := -m pytest -n $(shell nproc 2>/dev/null || echo 2)
PYTEST := $(BIN)/python $(WORKERS)
SOURCES := $(shell find src entrypoint -type f -not -name '*.pyc' 2>/dev/null) pyproject.toml README.md
FAULTS := tests/acceptance/faults
ALONE := $(FAULTS)/test_signal_moments.py $(FAULTS)/test_stampede.py
SEARCHES := tests/acceptance/test_round_trip.py tests/integration/schema/test_mutations_live.py tests/integration/test_lock.py
PURE := */decide.py,*/facts.py,*/candidates.py,*/comparison.py,*/settings.py,*/address.py,*/postgres/answers.py,*/schema/difference.py,*/schema/wording.py,*/diagnosis/drawing.py

.PHONY: demo test test-unit test-all test-extra test-containers test-faults test-newest test-lowest faults lint types bench image clean

demo: $(VENV)/installed
	$(BIN)/alembic-entrypoint demo

test: test-unit
	$(PYTEST) -m "not wide and not extra and not container and not faults" --ignore tests/unit tests

test-unit: $(VENV)/installed
	$(BIN)/python -m coverage run -m pytest -q tests/unit
	$(BIN)/python -m coverage report --include="$(PURE)" --fail-under=100

# What `test` leaves out: PgBouncer, PostgreSQL 12, 13 and 15, network namespaces, many cases of one thing, containers,
# faults with a tenth of their rounds. Needs root on Debian, an engine, npm.
test-all: test-extra test-newest test-containers test-faults

test-extra: $(VENV)/installed
	bash tests/install-extra.sh
	$(PYTEST) --durations 20 -m "extra and not faults and not container" tests

# The two ends of what is supported: many cases of one thing on the newest Python at hand, with the newest packages and
# PostgreSQL 18; the oldest of everything, PostgreSQL 13 included, on the oldest Python at hand.
NEWEST ?= $(PYTHON)
OLDEST ?= $(PYTHON)
MATRIX := tests/integration/test_env_matrix*.py
MAIN := tests/acceptance/test_run.py tests/acceptance/test_launch.py
OLD := autogenerate downgrade ledger optuna recovery server_versions signals wait

test-newest:
	$(MAKE) VENV=.venv-newest PYTHON=$(NEWEST) .venv-newest/installed
	.venv-newest/bin/python $(WORKERS) --durations 10 -m "wide and not extra and not faults and not container" tests
	.venv-newest/bin/python $(WORKERS) -m "not wide and not extra" $(MAIN)

test-lowest: export TEST_POSTGRES_MAJOR := 13
test-lowest:
	bash tests/install-extra.sh
	$(MAKE) VENV=.venv-lowest PYTHON=$(OLDEST) CONSTRAINTS="-c tests/lowest.txt" .venv-lowest/installed
	.venv-lowest/bin/python $(WORKERS) --durations 10 -m "not extra" tests/unit $(MATRIX)
	.venv-lowest/bin/python $(WORKERS) --durations 10 -m "not wide and not extra" $(MAIN) $(OLD:%=tests/acceptance/test_%.py) \
		tests/integration/test_bytecode.py tests/integration/test_lock.py

test-containers: $(VENV)/installed
	$(PYTEST) --dist loadfile --durations 10 -m container tests/container

test-faults:
	$(MAKE) faults FAULT_ROUNDS=0.1

# What was counted stands at the end of each of the two. A file's tests do not run beside each other, and those that
# need the machine for themselves run alone: a hundred replicas, and signals that must be heard within two seconds. With
# all rounds every random tree, every change of a schema and every order of lock and fence is tried, too.
faults: export FAULT_ROUNDS ?= 1
faults: $(VENV)/installed
	bash tests/install-extra.sh
	$(PYTEST) --dist loadfile -m faults $(FAULTS) $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest -m faults $(ALONE)
	$(if $(filter 1,$(FAULT_ROUNDS)),$(PYTEST) $(SEARCHES))

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# Each ends with 1 where a bar is not kept: with `make -k bench` the others are still measured.
bench: bench-starts bench-stampede bench-snapshot bench-proof

bench-%: $(VENV)/installed
	$(BIN)/python bench/$*.py

image:
	docker build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) $(if $(BUILD_NETWORK),--network $(BUILD_NETWORK)) -t alembic-entrypoint-example .

clean:
	rm -rf .venv .venv-lowest .venv-newest dist build .coverage .pytest_cache .mypy_cache .ruff_cache

# The wheel is what is installed and tested, not the source tree.
$(VENV)/installed: $(VENV)/packages $(SOURCES)
	rm -rf dist
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	$(BIN)/python -m pip install -q --no-deps --force-reinstall dist/*.whl
	touch $@

$(VENV)/packages: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip hatchling
	$(BIN)/python -m pip install -q $(CONSTRAINTS) '.[dev]'
	touch $@
