.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "flextensor needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

venv: $(STAMP) ## make the virtual environment and install everything

tune: $(STAMP) ## the main job: tune a real conv2d for this CPU and print the result table
	$(BIN)/python -m flextensor tune conv2d --case paper/C14 --target llvm

test: $(STAMP) ## run the whole test suite, two to four at a time
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(STAMP) ## ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

bench: $(STAMP) ## measure the paper's 120 cases against PyTorch (40 minutes) into results/paper
	$(BIN)/python -m flextensor bench --suite paper --time 15 --db results/paper/paper.db --out results/paper

.PHONY: help venv tune test lint types bench
