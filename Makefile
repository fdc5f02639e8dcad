# Every target works from a fresh clone: what it needs is installed once into .venv, from the package index.
# `make help` lists a target by the text after its `##`.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help venv test lint

help:  ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED)  ## the virtual environment .venv with all dependencies

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.10 or later is needed; none was found. Name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --editable '.[dev,lora]'
	@touch $@

test: $(INSTALLED)  ## the tests, at most 12 minutes on 2 cores
	$(RUN) -m pytest -q

lint: $(INSTALLED)  ## ruff over everything
	$(RUN) -m ruff check .

# Each of these gets its target here together with the script that it runs: demo, study, study-full, pretrain, patch, test-old, bench.
# A target with a script reads:
#   NAME: $(INSTALLED)  ## what a newcomer gets, and in what time
#   	$(RUN) scripts/NAME.py
