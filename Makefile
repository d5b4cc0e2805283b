# `make demo` and `make test` bootstrap themselves; CI runs the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo run test soak check bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The installer: uv, else the pip that is there (from 22.3 on it can install into another
# environment, which saves bootstrapping one), else a pip of the environment's own.
define INSTALLER
if [ -n "$(UV)" ]; then \
  without=--without-pip; install() { VIRTUAL_ENV=$(VENV) $(UV) pip install -q --no-deps "$$@"; }; \
elif $(PYTHON) -c 'import pip, sys; sys.exit([int(n) for n in pip.__version__.split(".")[:2]] < [22, 3])' 2>/dev/null; then \
  without=--without-pip; install() { $(PYTHON) -m pip --python $(BIN)/python install $(PIP_FLAGS) "$$@"; }; \
else \
  without=; install() { $(BIN)/python -m pip install $(PIP_FLAGS) "$$@"; }; \
fi
endef
PIP_FLAGS := -q --disable-pip-version-check --no-compile --no-deps

# Runtime only: what the demo and a server need.
$(VENV)/.ok: pyproject.toml requirements.lock
	@printf '» creating $(VENV) and installing gateway … ' >&2; began=$$(date +%s); \
	$(INSTALLER); \
	$(PYTHON) -m venv $$without $(VENV) >$(VENV).log 2>&1 || \
	  { echo; cat $(VENV).log; echo 'venv is missing: apt-get install python3-venv (or your system'\''s package)'; exit 1; }; \
	{ install --require-hashes -r requirements.lock && install -e . ; } >$(VENV).log 2>&1 || \
	  { echo; cat $(VENV).log >&2; exit 1; }; \
	rm -f $(VENV).log; printf 'done (%s s)\n' $$(( $$(date +%s) - began )) >&2
	@touch $@

# Tests and linters on top.
$(VENV)/.ok-dev: $(VENV)/.ok requirements-dev.lock
	@$(INSTALLER); install --require-hashes -r requirements-dev.lock
	@touch $@

install: $(VENV)/.ok-dev  ## everything a developer needs, in .venv

demo: $(VENV)/.ok  ## watch a chain fall back; no API key, nothing leaves this machine
	@$(BIN)/gateway demo $(ARGS)

run: $(VENV)/.ok  ## serve ./gateway.yaml (make one: .venv/bin/gateway init)
	@$(BIN)/gateway serve $(ARGS)

test: $(VENV)/.ok-dev  ## the whole default suite; no network
	@$(PYTEST) -q -n 2 --dist worksteal $(ARGS)

soak: $(VENV)/.ok-dev  ## what takes minutes: hundreds of lives of Redis and of workers
	@$(PYTEST) -q -n 2 --dist worksteal -m soak $(ARGS)

check: $(VENV)/.ok-dev  ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.ok  ## CPU per request and chunk, latency added; needs a C compiler (2 minutes)
	@$(BIN)/python bench/overhead.py $(ARGS)

lock:  ## write the lock files anew from pyproject.toml (needs uv)
	@uv pip compile -q --generate-hashes --no-header --no-annotate --no-emit-index-url --universal \
	  --python-version 3.11 pyproject.toml -o requirements.lock
	@uv pip compile -q --generate-hashes --no-header --no-annotate --no-emit-index-url --universal \
	  --python-version 3.11 --extra test --extra lint -c requirements.lock pyproject.toml -o requirements-dev.lock

clean:  ## remove .venv and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
