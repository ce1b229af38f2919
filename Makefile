# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
STATE  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vknode

.PHONY: help demo test test-quick bench lint format proto setup programs lock clean

help:
	@echo "make demo    the main job on real Kubernetes and containerd, about 2 minutes once built"
	@echo "make test    everything: lint, types, layers, unit, property, cluster and fault tests"
	@echo "make bench   cold starts beside raw CRI calls, with a plot in out/"
	@echo "make lint | format | proto | lock | clean"

# The Go build of the control plane takes the longest, so it starts first and runs
# beside pip; `programs` then waits for its lock and shows what is left.
setup:
	@mkdir -p "$(STATE)"
	@$(PYTHON) -m vknode.devcluster.programs --without kubectl >"$(STATE)/programs.log" 2>&1 </dev/null & \
	  trap 'kill $$! 2>/dev/null || true' INT TERM; \
	  $(MAKE) --no-print-directory $(READY)
	@$(BIN)/python -m vknode.devcluster.programs >/dev/null

$(READY): requirements.lock pyproject.toml
	@echo "python packages: installing the locked ones into $(VENV) (about 30 s)"
	@$(PYTHON) -m venv $(VENV) || { echo "needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

programs: setup

demo: setup
	@$(BIN)/vknode demo

test: setup lint
	@$(BIN)/pytest

# Without containers and without a control plane: seconds.
test-quick: $(READY)
	@$(BIN)/pytest -m "not cluster and not containerd"

bench: setup
	@$(BIN)/python -m bench.coldstart

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(READY)
	@$(BIN)/python proto/generate.py

# Not behind $(READY): that wants the very lock that this makes.
lock:
	@$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --all-extras \
	  --python-version 3.11 -o requirements.lock pyproject.toml

clean:
	@rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis
