# One command for each habit. Needs Python 3.11 or newer (with venv and pip), make and git; everything else goes to .venv.

PYTHON ?= python3
# Some tests wait more than they work; with four at a time on two processors everything took a tenth longer.
WORKERS ?= 3
MINUTES ?= 30
TIMES ?= 10
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := bench/.peers
OLDEST := .lanes/sqlalchemy-2.0.40
# What shows that a SQLAlchemy does: enqueue in all its ways, what claims and records, migrations; on both databases.
ON_OLDEST := $(addprefix tests/,$(addprefix conformance/test_,store_arriving.py store_claiming.py store_recording.py store_shares.py \
	store_streams.py claims.py rows_as_one_value.py) $(addprefix story/test_,enqueue_many.py async.py dbapi.py hooks.py plain_sql.py) \
	meta/test_migrations.py meta/test_migrations_of_hosts.py)
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUTF8 := 1
# Hundreds of processes are started: what was compiled once is kept for the next, whatever this machine's habits are.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup test test-merge test-all test-oldest torture planted explore cover mutation steady scale bench bench-setup lint check demo docs migration wheel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s%s\n", $$1, $$2 }'

setup: $(READY) ## a virtual environment in .venv with everything in it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "outbox needs Python 3.11 or newer, this is %d.%d. Try: make setup PYTHON=python3.13" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@# What is used is compiled once, below, and not by every process of the first run at the same time.
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q outbox migrations
	@$(BIN)/python -m pytest -q --collect-only tests > /dev/null || true # what is wrong there, the tests will say
	@touch $@

test: setup ## the tests of every day, in a hundred seconds (one folder: only=pure)
	$(PYTEST) -m "not merge" tests/$(only)

test-merge: setup ## the others that a change must pass to land: long ones, and stories on a Postgres of its own
	$(PYTEST) -m merge tests/$(only)

test-all: setup ## all of them at full size: the largest numbers whole, and the longest tests on both databases
	OUTBOX_LONG=1 $(PYTEST) tests/$(only)

test-oldest: setup $(OLDEST)/.ready ## on the oldest SQLAlchemy that pyproject.toml allows, in place of the one in .venv; in a minute
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -c 'import sqlalchemy; assert "$(OLDEST)".endswith(f"-{sqlalchemy.__version__}"), sqlalchemy'
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(PYTEST) $(ON_OLDEST)

$(OLDEST)/.ready: pyproject.toml
	@grep -q '"sqlalchemy>=$(lastword $(subst -, ,$(OLDEST))),' pyproject.toml || { echo 'OLDEST in the Makefile is not what pyproject.toml begins with'; exit 2; }
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(OLDEST) sqlalchemy==$(lastword $(subst -, ,$(OLDEST)))
	@touch $@

torture: setup ## kills, pauses and power cuts for so many minutes, and the table of what was lost: make torture MINUTES=30
	$(BIN)/python -m tests.torture --minutes $(MINUTES)

planted: setup ## faults are planted in the product, one at a time: which test catches which
	$(BIN)/python -m tests.planted

explore: setup ## every order of what two workers and an operator may do, as deep as it goes: states, and broken laws
	OUTBOX_LONG=1 $(BIN)/python -m pytest -q -s tests/explore

cover: setup ## which branches of nouns and verbs the tests take; all of them are listed that none takes
	$(BIN)/python -m tests.covering --workers $(WORKERS)

mutation: setup ## the rules are changed here and there, for so many minutes: does a test notice each time? make mutation MINUTES=30
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[mutation]'
	$(BIN)/python -m tests.mutating --minutes $(MINUTES)

steady: setup ## the tests of every day TIMES times over, each in another order, in turn in three time zones
	@set -e -- UTC America/St_Johns Pacific/Chatham; for run in $$(seq $(TIMES)); do \
	echo "run $$run of $(TIMES), TZ=$$1"; TZ=$$1 $(PYTEST) -p randomly -m "not merge" tests/$(only); zone=$$1; shift; set -- "$$@" "$$zone"; done

scale: setup ## millions of messages on both databases, measured (one: only=sqlite; a quick look: OUTBOX_SCALE=50000)
	$(BIN)/python -m bench.scale $(only)

bench: setup bench-setup ## every figure against what it is compared with, and docs/performance.md anew: 40 minutes at most (one: only=NAME)
	$(BIN)/python -m bench $(if $(only),$(only),--report)

bench-setup: $(PEERS)/.ready ## what outbox is compared with: other libraries, in an environment of their own (bench/.peers), and curl
	@command -v curl > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && \
	apt-get update -q && apt-get install -qy --no-install-recommends curl; } || echo 'curl is missing and could not be installed'

$(PEERS)/.ready: bench/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q -c constraints.txt -r bench/peers/requirements.txt
	@touch $@

lint: setup ## format, ruff, mypy strict, the rings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint test test-merge ## am I done? what CI runs

demo: setup ## see it: receiver, producer and worker in one terminal
	$(BIN)/python -m outbox.testing.demo

docs: setup ## the pages of docs/ that are written from the code, anew
	$(BIN)/python -m tests.writing

migration: setup ## write the next migration from tables.py: make migration name="add a column"
	@test -n '$(name)' || { echo 'make migration name="what it does"'; exit 2; }
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && set -e && \
	number=$$(printf 'outbox_%04d' $$(( $$(ls migrations/versions/*.py 2>/dev/null | wc -l) + 1 ))) && \
	sed -e 's|%(here)s|$(CURDIR)|' -e "s|^sqlalchemy.url.*|sqlalchemy.url = sqlite:///$$scratch/outbox.db|" alembic.ini > "$$scratch/alembic.ini" && \
	$(BIN)/alembic -c "$$scratch/alembic.ini" upgrade heads && \
	$(BIN)/alembic -c "$$scratch/alembic.ini" revision --autogenerate --rev-id "$$number" -m '$(name)'

wheel: setup ## source archive and wheel, into dist/
	$(BIN)/python -m build -q --no-isolation

clean: ## remove what the other commands made
	rm -rf $(VENV) $(PEERS) .lanes dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find outbox migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +
