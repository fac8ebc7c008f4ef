# Every chore is one target here, the same for people and for CI. Plain `make` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3# the interpreter that builds the environment, 3.11 or newer
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UNFINISHED := $(VENV)/.unfinished
LOG := $(VENV)/setup.log
DEMO := out/demo
BENCH_ARGS ?=
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 4

.PHONY: help setup demo test lint format types tests bench docs wheel-check constraints clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(READY) ## create .venv with every pinned version and install dispatchgym into it (skipped while up to date)

# A set-up that was cut short leaves UNFINISHED behind, and the next one starts from nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $(UNFINISHED) ]; then rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	@if ! command -v nvidia-smi >/dev/null && [[ ! "$$($(PYTHON) -m pip config list 2>/dev/null)" =~ index-url|find-links ]]; then \
	  echo "note: no GPU here, yet pip may fetch gigabytes of CUDA packages; README.md, 'Without a GPU', says how to get torch's CPU build"; fi
	@echo "Setting up $(VENV): about a minute, more on a slow network (details: $(LOG))"
	@{ $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --progress-bar off -c constraints.txt pip setuptools && \
	  $(BIN)/python -m pip install --progress-bar off -c constraints.txt --no-build-isolation -e '.[dev,docs]' && \
	  $(BIN)/python -m pip check; } >$(LOG) 2>&1 || \
	  { tail -n 15 $(LOG) >&2; echo "error: the set-up failed; the lines above are the end of $(LOG)" >&2; exit 1; }
	@rm $(UNFINISHED) && touch $@

demo: setup ## set up, judge the rules and CP-SAT on real instances, say where the report lies
	@$(BIN)/dispatchgym evaluate demo --out $(DEMO)
	@echo "Report: $(DEMO)/report.html"

test: lint types tests ## set up, then lint, types and tests

lint: setup ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup ## mypy --strict over the package
	@$(BIN)/mypy

tests: setup ## pytest without the slow tests (PYTEST_ARGS=... to choose)
	@$(BIN)/pytest $(PYTEST_ARGS)

bench: setup ## run every script in benchmarks/ side by side with its peers (BENCH_ARGS=--quick for half a minute each)
	@for script in benchmarks/*.py; do echo "== $$script $(BENCH_ARGS)"; $(BIN)/python "$$script" $(BENCH_ARGS); done

docs: setup ## build the documentation into site/
	@$(BIN)/mkdocs build --strict 2>&1 | sed '/^INFO/d'
	@echo "Documentation: site/index.html"

wheel-check: setup ## build sdist and wheel, install the wheel in a fresh environment elsewhere, use it from there
	@.ci/wheel-check

constraints: ## write constraints.txt anew: the newest versions that pyproject.toml allows, with torch 2.13.0
	@.ci/constraints $(PYTHON)

clean: ## remove build products and caches (keeps .venv, out/ and runs/)
	@rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find envs solvers agents serving configs dispatchgym tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
