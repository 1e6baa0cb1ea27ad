# The front doors: `make sweep` and `make test` make .venv first if it is not there. `make help` lists the rest.
#
#   make sweep ARGS="--trials 4"              flags for run_sweep.py
#   make sweep SPACE=another_space            another question
#   make test ARGS="-m 'not slow' tests/..."  flags for pytest
#   make PYTHON=python3.12 sweep              another interpreter for .venv, 3.11 or newer

PYTHON ?= python3
SPACE  ?= sinsr_loss_ratios
ARGS   ?=

VENV   := .venv
BIN    := $(VENV)/bin
# Written last: there is a whole environment, made from requirements.txt as it was then.
STAMP  := $(VENV)/.made-from-requirements
# Written first and removed last: an install began here. Found at the start, it means that install was cut off.
BEGUN  := $(VENV).begun
LOCK   := $(VENV).lock

.PHONY: help sweep test lint format assets clean
.DEFAULT_GOAL := help

help:
	@echo 'make sweep    train and compare: run_sweep.py --space $(SPACE) (flags: ARGS="...", question: SPACE=...)'
	@echo 'make test     the whole test suite, slow tests too (flags: ARGS="...")'
	@echo 'make lint     ruff and mypy'
	@echo 'make format   let ruff format the code'
	@echo 'make assets   train again the small networks that ship with the project'
	@echo 'make clean    remove $(VENV) and caches; results stay'

sweep: $(STAMP)
	@$(BIN)/python run_sweep.py --space $(SPACE) $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

assets: $(STAMP)
	$(BIN)/python -m trainables.assets $(ARGS)

clean:
	rm -rf $(VENV) $(BEGUN) $(LOCK) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One shell from lock to stamp. The lock lets a second `make` wait for the first instead of clearing its work away.
$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: PYTHON=$(PYTHON) is `$(PYTHON) --version 2>&1 | tail -1`; Python 3.11 or newer is needed," \
	         "for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@set -e; exec 9>$(LOCK); if command -v flock >/dev/null; then flock 9; fi; \
	if [ $@ -nt requirements.txt ]; then exit 0; fi; \
	if [ -e $(BEGUN) ]; then echo "The last install into $(VENV) was cut off: starting afresh."; rm -rf $(VENV); fi; \
	echo "Installing the pinned packages into $(VENV): the first time takes two to five minutes and 7 GB."; \
	touch $(BEGUN); rm -f $@; \
	$(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt; \
	$(BIN)/python -m pip check --disable-pip-version-check; \
	rm $(BEGUN); \
	touch $@
