# Two commands: `make quickstart` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
# The first supported interpreter, unless PYTHON names one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
RUN := runs/quickstart_x4
# Two workers. Each takes whole files, the longest first (`tests/conftest.py`).
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	--durations=15
LINT = $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/codespell && \
	$(BIN)/basedpyright --pythonpath $(BIN)/python
# Tests, and lint at the same time, whose output comes in one piece: at once where it
# fails, else at the end. The command fails where either does.
define beside_lint
said=$$(mktemp); \
{ { $(LINT); } >$$said 2>&1 || { cat $$said >&2; exit 1; }; } & lint=$$!; \
code=0; $(PYTEST) $(1) || code=$$?; \
if wait $$lint; then cat $$said; else echo "lint failed, see above" >&2; code=1; fi; \
rm -f $$said; exit $$code
endef

help:  ## List the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error E101: Python 3.11, 3.12 or 3.13 is needed \
	and none was found; install one, or give make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error E102: $(PYTHON) \
	has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@echo "installing requirements-dev.txt into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements-dev.txt
	@touch $@

install: $(VENV)/installed  ## Build the environment

cuda: $(VENV)/installed requirements-cuda.txt  ## Add the CUDA build of JAX to it
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements-cuda.txt

quickstart: $(VENV)/installed  ## Train, evaluate and picture DAASR x4 on the template
	@$(BIN)/python train.py --config configs/quickstart_x4.py --workdir $(RUN)
	@$(BIN)/python eval.py --workdir $(RUN) --force

lint: $(VENV)/installed-dev  ## Style, types, spelling
	@$(LINT)

test: $(VENV)/installed-dev  ## Lint, and beside it the quicker tests
	@$(call beside_lint,-m "not full")

test-all: $(VENV)/installed-dev  ## Lint, and beside it all tests
	@$(call beside_lint,)

test-python:  ## The quicker tests by another Python: make test-python PYTHON=python3.13
	@$(MAKE) --no-print-directory quicker VENV=.venv-$(shell $(PYTHON) -c \
		'import sys; print("%d.%d" % sys.version_info[:2])')

quicker: $(VENV)/installed-dev
	@$(PYTEST) -m "not full"

coverage: $(VENV)/installed-dev  ## Lines that all tests reach, or TESTS=FOLDER
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

fuzz: $(VENV)/installed-dev  ## Ten minutes of damaged files; FUZZ=--seed=N for others
	@$(BIN)/python -m tests.fuzz $(FUZZ)

drill: $(VENV)/installed  ## A run that is killed, and one that is not; minutes
	@PYTHON=$(BIN)/python scripts/drill.sh $(DRILL)

sbom:  ## The bill of materials, from the lock, into dist/
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) scripts/sbom.py

parity: $(VENV)/installed-dev  ## All that needs PyTorch, which it installs
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pytest tests/parity tests/unit/test_compared.py \
		tests/unit/test_pretrained.py

bench: $(VENV)/installed-dev  ## Speed and memory, against peers in the same run
	@$(BIN)/python -m benchmarks.matching --out docs/results
	@$(BIN)/python -m benchmarks.train_step --out docs/results
	@$(BIN)/python -m benchmarks.step_options --out docs/results
	@$(BIN)/python -m benchmarks.scaling --out docs/results

docs: $(VENV)/installed-dev  ## Pages and API reference into site/, offline
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

lock:  ## Renew the locks (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" pyproject.toml -o requirements.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" -c requirements.txt \
		--extra dev pyproject.toml -o requirements-dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" -c requirements.txt \
		--extra cuda pyproject.toml -o requirements-cuda.txt

.PHONY: help install cuda quickstart lint test test-all test-python quicker coverage \
	fuzz drill sbom parity bench docs lock
