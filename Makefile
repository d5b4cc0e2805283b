# `make demo` and `make test` bootstrap themselves; CI runs the same targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo run test check bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Runtime only: what the demo and a server need. The marker carries what it was made of.
$(VENV)/.ok: pyproject.toml requirements.lock
	@printf '» creating $(VENV) and installing gateway … ' >&2; began=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) >/dev/null 2>$(VENV).log || \
	  { echo; cat $(VENV).log; echo 'venv is missing: apt-get install python3-venv (or your system'\''s package)'; exit 1; }; \
	if [ -n "$(UV)" ]; then \
	  VIRTUAL_ENV=$(VENV) uv pip install -q --require-hashes -r requirements.lock && \
	  VIRTUAL_ENV=$(VENV) uv pip install -q --no-deps -e . ; \
	else \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock 2>$(VENV).log && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . 2>>$(VENV).log ; \
	fi || { echo; cat $(VENV).log >&2; exit 1; }; \
	rm -f $(VENV).log; printf 'done (%s s)\n' $$(( $$(date +%s) - began )) >&2
	@touch $@

# Tests and linters on top.
$(VENV)/.ok-dev: $(VENV)/.ok requirements-dev.lock
	@$(if $(UV),VIRTUAL_ENV=$(VENV) uv pip install -q,$(BIN)/python -m pip install -q --disable-pip-version-check) --require-hashes -r requirements-dev.lock
	@touch $@

install: $(VENV)/.ok-dev  ## everything a developer needs, in .venv

demo: $(VENV)/.ok  ## watch a chain fall back; no API key, nothing leaves this machine
	@$(BIN)/gateway demo $(ARGS)

run: $(VENV)/.ok  ## serve ./gateway.yaml (make one: .venv/bin/gateway init)
	@$(BIN)/gateway serve $(ARGS)

test: $(VENV)/.ok-dev  ## the whole default suite; no network
	@$(PYTEST) -q -n 2 --dist worksteal $(ARGS)

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
