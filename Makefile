# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
STATE  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vknode

.PHONY: help demo test test-previous test-quick bench bench-streams conformance fuzz lint audit format proto setup programs lock clean

help:
	@echo "make demo    the main job on real Kubernetes and containerd, about 2 minutes once built"
	@echo "make test    everything: lint, types, layers, unit, property, cluster and fault tests"
	@echo "make test-previous   of these what differs by release, on Kubernetes 1.35.4"
	@echo "make bench   cold starts beside raw CRI calls, with a plot in out/"
	@echo "make bench-streams   exec, logs and port-forward beside the pool's own, a stub and a real kubelet"
	@echo "make conformance   upstream's node conformance tests, on vknode and on a real kubelet"
	@echo "make fuzz   parsers of others' bytes, FUZZ_SECONDS (300) each, and the kubelet API"
	@echo "make audit   known vulnerabilities of what is locked, and its SBOM"
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

# What tests need beside the control plane is built while lint runs, and comes first: where it
# lacks, tests would be skipped.
test: setup
	@{ $(BIN)/python -m vknode.devcluster.programs kubelet metrics-server; \
	    $(BIN)/python -m tests.monitoring --programs; } >"$(STATE)/tools.log" 2>&1 </dev/null & \
	  trap 'kill $$! 2>/dev/null || true' INT TERM; \
	  $(MAKE) --no-print-directory lint
	@$(BIN)/python -m vknode.devcluster.programs kubelet metrics-server >/dev/null
	@$(BIN)/python -m tests.monitoring --programs
	@$(BIN)/python -m tests.conformance --programs
	@$(MAKE) --no-print-directory test-previous
	@$(BIN)/pytest

# What differs by release, on an older one: its API server speaks SPDY/3.1 to nodes. Its
# control plane is built like the newest and cached beside it (5 minutes once, then 4).
PREVIOUS := tests/previous/gomodule
test-previous: setup
	@VKNODE_GOMODULE=$(PREVIOUS) $(BIN)/python -m vknode.devcluster.programs >/dev/null
	@VKNODE_GOMODULE=$(PREVIOUS) $(BIN)/pytest tests/previous tests/kubeletapi/test_kubectl.py \
	  tests/kubectl/test_{attach,changing,exec,logs,port_forward,reading}.py \
	  tests/workloads tests/topology

# Without containers and without a control plane: seconds.
test-quick: $(READY)
	@$(BIN)/pytest -m "not cluster and not containerd"

bench: setup
	@$(BIN)/python -m bench.coldstart

bench-streams: setup
	@$(BIN)/python -m vknode.devcluster.programs kubelet >/dev/null
	@$(BIN)/python -m bench.streams

# About an hour; `python -m tests.conformance --help` tells of parts. Once built (5 minutes,
# after the control plane), upstream's test binary is cached like the control plane.
conformance: setup
	@$(BIN)/python -m tests.conformance

# `make test` does each for some seconds only, with the same inputs each time.
FUZZ_SECONDS ?= 300
fuzz: $(READY)
	@for target in $$(ls tests/fuzz/corpus); do echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
	  $(BIN)/python -m tests.fuzz "$$target" --seconds $(FUZZ_SECONDS) 2>&1 | tail -n 1; done
	@echo "fuzzing the kubelet API, each of some 60 tests for a tenth of $(FUZZ_SECONDS) s"
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest --timeout 0 tests/kubeletapi/hostile
	@echo "property tests, with other examples"
	@$(BIN)/pytest --timeout 0 --hypothesis-profile others -m "not cluster and not containerd" \
	  $$(grep -rl "^from hypothesis" tests --include "test_*.py")

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive vknode

# The tools have an environment and a lock of their own: nothing of vknode needs them. Asks a
# public service for known vulnerabilities, and fails where that is not reached.
audit: out/sbom.json
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

out/sbom.json: requirements.lock .venv-audit/.ready
	@mkdir -p out
	@.venv-audit/bin/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml \
	  --output-file $@ requirements.lock
	@echo "SBOM (CycloneDX): $@"

.venv-audit/.ready: .ci/audit.lock
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/pip install --quiet --disable-pip-version-check --require-hashes -r .ci/audit.lock
	@touch $@

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(READY)
	@$(BIN)/python proto/generate.py

# Not behind $(READY): that wants the very lock that this makes.
lock:
	@$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --all-extras \
	  --python-version 3.11 -o requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url \
	  --python-version 3.11 -o .ci/audit.lock .ci/audit.in

clean:
	@rm -rf $(VENV) .venv-audit out .mypy_cache .ruff_cache .pytest_cache .hypothesis
