# The commands of this repository; `make` alone lists them. Everything runs from this folder.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# A folder of this run's own for what tests write, gone at its end. Mounts in it are not entered.
PYTEST = t=$$(mktemp -d /tmp/noderuntime-tests-XXXXXX); trap 'rm -rf --one-file-system $$t' EXIT; \
	$(PY) -m pytest --basetemp=$$t/run
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/.cluster/bin:$(PATH):/usr/local/go/bin
export PYTHONDONTWRITEBYTECODE ?= 1

.DEFAULT_GOAL := help
.PHONY: help venv packages programs up down check test root soak e2e conformance test-kernels bench image generate clean \
	check-format check-lint check-mypy check-pyright check-imports check-generated check-unit

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

up: venv ## a one-node Kubernetes cluster on this machine, with our runtime, and a governed Pod
	$(PY) -m e2e.cluster up

down: venv ## take it away again, with everything that it left
	$(PY) -m e2e.cluster down

check: venv ## seconds: format, lint, types, imports, generated files, unit tests
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target \
		check-unit check-pyright check-mypy check-lint check-format check-imports check-generated
	@echo "make check: all is well"

test: ## everything: check, tests that need root, the real cluster
	@$(MAKE) --no-print-directory programs
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory root
	@$(MAKE) --no-print-directory e2e

root: venv packages programs ## tests on real namespaces, mounts and OCI runtimes, and with hostile input
	@$(PYTEST) tests/root tests/contract tests/fuzz

soak: venv packages ## an hour of Pods that come and go under random faults; make soak SECONDS=600
	$(PY) -m tests.root.soak $(or $(SECONDS),3600)

e2e: venv ## tests on the real cluster, which is made if it is not up
	@$(PYTEST) e2e

test-kernels: venv ## those that boot a second Linux: cgroup v2 with systemd, AppArmor, SELinux, power loss
	@$(PYTEST) e2e/kernels

bench: venv packages ## side by side with containerd: writes docs/performance.md; make bench ARGS=--short takes two minutes
	$(PY) -m e2e.performance $(ARGS)

conformance: venv packages ## CRI's own conformance suite against the runtime, under each OCI runtime
	@$(PYTEST) -rP e2e/conformance

image: venv ## the images, as OCI layouts: the same digest from the same input
	$(PY) -m e2e.cluster image

generate: venv ## write the generated files: CRDs, protobuf messages
	$(PY) -m noderuntime.api.crd
	$(PY) -m noderuntime.cri.generate

# Behind the commands.

venv: $(VENV)/.complete

# The paths go in by a .pth file: an editable install would need a build backend from the network.
$(VENV)/.complete: requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) must be Python 3.11 or later (or: make PYTHON=/path/to/python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory apt PACKAGES=python3-venv
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.lock
	@printf '%s\n%s\n' "$(CURDIR)" "$(CURDIR)/operator" \
		> "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/noderuntime.pth"
	@touch $@

# What the cluster and the tests run: built once, from Go modules, into .cluster/bin.
programs: venv
	$(PY) -m e2e.cluster build

packages:
	@missing=$$(sed 's/#.*//' requirements/debian.txt | xargs dpkg-query -W -f '$${Package} $${Status}\n' 2>&1 \
		| sed -n 's/ deinstall ok.*//p; s/dpkg-query: no packages found matching //p'); \
	test -z "$$missing" || $(MAKE) --no-print-directory apt PACKAGES="$$(echo $$missing)"

.PHONY: apt
apt:
	@command -v apt-get >/dev/null \
		|| { echo "this machine has no apt-get; install by hand: $(PACKAGES)" >&2; exit 1; }
	@test "$$(id -u)" = 0 || { echo "become root to install: $(PACKAGES)" >&2; exit 1; }
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $(PACKAGES) >/dev/null

check-format:
	@ruff format --check --quiet . || { echo "run: ruff format ." >&2; exit 1; }

check-lint:
	@ruff check --quiet --output-format concise .

check-mypy:
	@mypy --no-error-summary

check-pyright:
	@pyright --level error | { grep -v '^0 errors' || true; }

check-imports:
	@found=$$(PYTHONPATH=.:operator lint-imports --no-cache) || { echo "$$found"; exit 1; }

check-generated:
	@$(PY) -m noderuntime.api.crd --check
	@$(PY) -m noderuntime.cri.generate --check

check-unit:
	@$(PYTEST) --quiet --numprocesses=2 tests/unit

clean: ## remove the virtual environment and caches; never the cluster
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
