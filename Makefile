# Every target works from a fresh clone: what it needs is installed once into .venv, from the package index.
# `make help` lists a target by the text after its `##`.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)
PYTHON_IS_THERE = test -n "$(PYTHON)" || { echo "Python 3.10 or later is needed; none was found. Name one with make PYTHON=/path/to/python3" >&2; exit 1; }
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help venv test lint demo study study-full pretrain bench patch test-old

help:  ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED)  ## the virtual environment .venv with all dependencies

$(INSTALLED): pyproject.toml
	@$(PYTHON_IS_THERE)
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --editable '.[dev,dpm,lora]'
	@touch $@

test: $(INSTALLED)  ## the tests, at most 12 minutes on 2 cores
	$(RUN) -m pytest -q

lint: $(INSTALLED)  ## ruff over everything
	$(RUN) -m ruff check .

demo: $(INSTALLED)  ## a new character, learnt with and without the regulariser: logs/demo/report.html, at most 5 minutes on 2 cores
	$(RUN) scripts/demo.py

study: $(INSTALLED)  ## several characters and seeds: results/characters.json and the table in docs/results.md, hours
	$(RUN) scripts/study_characters.py
	$(RUN) scripts/results_page.py

study-full: $(INSTALLED)  ## every idea, source of latents and rival: results/characters_full.json and docs/results.md, about 10 hours; goes on where it was stopped
	$(RUN) scripts/study_full.py
	$(RUN) scripts/full_results_page.py

pretrain: $(INSTALLED)  ## train the shipped characters model from nothing, hours; goes on where it was stopped
	$(RUN) scripts/pretrain_characters.py

bench: $(INSTALLED)  ## what the regulariser costs a training step; the last line is one JSON object
	$(RUN) benchmarks/regularizer_cost.py

patch:  ## patches/0001-locality-regularizer.patch anew, from the files that it carries
	@$(PYTHON_IS_THERE)
	$(PYTHON) scripts/make_patch.py

test-old:  ## the regulariser's tests under Python 3.8, torch 1.10.2 and Lightning 1.5.9, with the patch applied; loads 0.9 GB the first time
	@$(PYTHON_IS_THERE)
	$(PYTHON) tests/old/run.py
