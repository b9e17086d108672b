# Two commands matter: `make demo` and `make test`. `make help` lists them all.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
READY := $(VENV)/.installed

.PHONY: help setup demo up down test bench lint format lock crd docs clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install everything into .venv (the other targets do it by themselves)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed: $(PYTHON) is not. Name another: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian: python3-venv)."; exit 1; }
	@echo "Installing the locked dependencies into $(VENV) …"
	@set -o pipefail; $(PY) -m pip install --disable-pip-version-check --progress-bar off --require-hashes \
	  -r requirements.lock | awk -v all=$$(grep -c '^[A-Za-z0-9].*==' requirements.lock) \
	  '/^Collecting / && ++n % 10 == 0 {print "  fetched " n " of at most " all; fflush()} /^Installing/ {print "  unpacking …"; fflush()}'
	@$(PY) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## The whole story: a cluster, an operator, three pods, clients, a killed pod, clean-up
	@$(PY) -m demo

up: $(READY) ## Start the same and leave it running
	@$(PY) -m demo up

down: $(READY) ## Stop what `make up` started
	@$(PY) -m demo down

test: $(READY) ## Run all tests
	@$(PY) -m devcluster build
	@$(PY) -m tests

bench: $(READY) ## Measure the data plane beside its peers (half an hour; needs Node and Go; writes docs/benchmarks.md)
	@$(PY) -m benchmarks --write

lint: $(READY) ## Style, types, walls between packages, generated files
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(PY) -m tableforge_operator.api.crd --check
	@$(PY) -m tableforge_dataplane.contract.reference --check
	@$(PY) -m tableforge_operator.reference --check

format: $(READY) ## Format the code and mend what can be mended
	@$(VENV)/bin/ruff check --fix -q . || true
	@$(VENV)/bin/ruff format .

COMPILE := $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-header --no-emit-package tableforge

lock: $(READY) ## Resolve requirements.lock anew, and from it what each image installs
	@$(COMPILE) pyproject.toml --all-extras -o requirements.lock
	@$(COMPILE) pyproject.toml --extra operator -c requirements.lock -o requirements-operator.lock
	@$(COMPILE) pyproject.toml --extra dataplane -c requirements.lock -o requirements-dataplane.lock
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(COMPILE) - -c requirements.lock -o requirements-build.lock

crd: $(READY) ## Write crds/ anew from the typed model
	@$(PY) -m tableforge_operator.api.crd

docs: $(READY) ## Write docs/configuration.md and the table in docs/operator.md anew from settings and model
	@$(PY) -m tableforge_dataplane.contract.reference
	@$(PY) -m tableforge_operator.reference

clean: ## Remove what was installed here (the per-user cache stays)
	@test ! -d .devcluster || ! test -x $(PY) || $(PY) -m demo down
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .devcluster .bench .browser .zig
