# `make sweep` and `make test` first create .venv if it is missing. `make help` lists all targets.
#
#   make sweep ARGS="--trials 4"              flags of run_sweep.py
#   make sweep SPACE=another_space            another question
#   make test ARGS="-m 'not slow' tests/..."  flags of pytest
#   make PYTHON=python3.12 sweep              another interpreter for .venv, 3.11 or newer

PYTHON ?= python3
SPACE  ?= sinsr_loss_ratios
ARGS   ?=

VENV   := .venv
BIN    := $(VENV)/bin
# Written last: the environment is complete and matches requirements.txt.
STAMP  := $(VENV)/.made-from-requirements
# Written first and removed last: if it exists at the start, an install was interrupted.
BEGUN  := $(VENV).begun
LOCK   := $(VENV).lock

# Left out of `make check`: tests that train or restore, start Ray, or talk to an S3 server.
LONGER_TESTS := benchmarks end_to_end trainables/assets trainables/methods trainables/training trainables/test_restore.py \
                trainables/data/test_interrupted_preparation.py trainables/data/test_store_buckets.py \
                trainables/images/test_object_storage.py

# For all tests, on two cores: half of the time a test waits for processes. Four take at most 12 GB. The tests of a file share
# their fixtures, so a file stays in one process. Files start in the order that tests/conftest.py gives them: the longest first.
AT_ONCE := -n 4 --dist loadfile --no-loadscope-reorder

# Containers often set it. Then no process keeps what it compiles: each would compile torch and Ray again, for 9 CPU
# seconds. Empty means not set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help sweep test check lint format assets gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo 'make sweep    run a sweep: run_sweep.py --space $(SPACE) (flags: ARGS="...", question: SPACE=...)'
	@echo 'make test     all tests, slow ones too, in four processes (some of them, in one: ARGS="...")'
	@echo 'make check    lint, types, import rules and the fast tests (a few minutes)'
	@echo 'make lint     ruff and mypy'
	@echo 'make format   format the code with ruff'
	@echo 'make assets   train the small shipped networks again'
	@echo 'make gpu-check check every method on the GPU of this machine (flags: ARGS="--no-compile")'
	@echo 'make clean    remove $(VENV) and caches; keep results'

sweep: $(STAMP)
	@$(BIN)/python run_sweep.py --space $(SPACE) $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),$(AT_ONCE))

check: lint
	@$(BIN)/python -m pytest -m 'not slow' $(AT_ONCE) $(addprefix --ignore=tests/,$(LONGER_TESTS)) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

assets: $(STAMP)
	$(BIN)/python -m trainables.assets $(ARGS)

gpu-check: $(STAMP)
	@$(BIN)/python -m trainables.gpu_check $(ARGS)

clean:
	rm -rf $(VENV) $(BEGUN) $(LOCK) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `--no-compile`: Python compiles the modules that it imports, once; to compile all of them takes half of an install.
# One shell from lock to stamp. A second `make` waits for the lock instead of deleting the first one's files.
$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: PYTHON=$(PYTHON) is `$(PYTHON) --version 2>&1 | tail -1`; Python 3.11 or newer is needed," \
	         "for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@set -e; exec 9>$(LOCK); if command -v flock >/dev/null; then flock 9; fi; \
	if [ $@ -nt requirements.txt ]; then exit 0; fi; \
	if [ -e $(BEGUN) ]; then echo "The last install into $(VENV) was interrupted; installing again."; rm -rf $(VENV); fi; \
	echo "Installing the pinned packages into $(VENV): the first install takes about two minutes, more with a slow index, and 7 GB."; \
	touch $(BEGUN); rm -f $@; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt; \
	$(BIN)/python -m pip check --disable-pip-version-check; \
	rm $(BEGUN); \
	touch $@
