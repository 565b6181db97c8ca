# Every target first builds .venv, which needs nothing but make and a python3 of 3.11 or newer.
# All paths are relative: the checkout may lie in a folder whose name has spaces.
#
#   make train ARGS="--seed 3" RUN=runs/tmaze-3    ARGS goes to snaprl train, pytest, snaprl bench
#   make train CONFIG=copy          another file of configs/

PY := .venv/bin/python
UV := $(PY) -m uv
SNAPRL := .venv/bin/snaprl
READY := .venv/.ready
CONFIG ?= tmaze
RUN ?= runs/$(basename $(notdir $(CONFIG)))
ARGS ?=

# What is locked: the library, every tool, and the optional parts that the tests exercise.
EXTRAS := dev digits docs minigrid popgym ray sparsity

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-lowest lint format bench figure docs lock clean
.DELETE_ON_ERROR:

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

train: $(READY) ## train the T-maze (or CONFIG=...), evaluate it, draw its curve; resumes a run
	@if [ -e "$(RUN)/config.toml" ]; then resume=--resume; else resume=; fi; set -x; \
		$(SNAPRL) train "$(CONFIG)" --run-dir "$(RUN)" $$resume $(ARGS)
	$(SNAPRL) evaluate "$(RUN)"
	$(SNAPRL) plot "$(RUN)"
	@echo
	@echo "metrics   $(RUN)/metrics.jsonl"
	@echo "curve     $(RUN)/curve.png"
	@echo "weights   $(RUN)/checkpoints/"
	@echo "Start again from nothing: remove $(RUN), or give another one with RUN=..."

# The fast tests run thousands of small programs once: XLA need not optimise them.
FAST := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true $$XLA_FLAGS"

test: $(READY) ## the fast tests, on all cores
	$(FAST) $(PY) -m pytest -n auto --dist loadfile -m "not slow and not learning" $(ARGS)

test-all: $(READY) ## every test, slow and learning ones too
	$(PY) -m pytest $(ARGS)

test-lowest: $(READY) ## the fast tests on the oldest dependencies that pyproject.toml allows
	$(PY) -m venv --clear .venv-lowest
	$(UV) pip install -p .venv-lowest/bin/python --resolution lowest-direct \
		-e ".[minigrid,popgym,sparsity,test]"
	$(FAST) .venv-lowest/bin/python -m pytest -n auto --dist loadfile -m "not slow and not learning" $(ARGS)

lint: $(READY) ## formatting, lint and types, changing nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright

format: $(READY) ## put the code in shape
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(READY) ## measure speed and memory
	$(SNAPRL) bench $(ARGS)

figure: $(READY) ## train the README's picture: SnAp-1 and truncated BPTT, 5 seeds each
	$(PY) benchmarks/learning.py tmaze tmaze_bptt --seeds 5 --figure docs/tmaze --chance 0.5

docs: $(READY) ## build the site into docs/_build/html
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

# --universal: one file for every Python we support. It names versions, never an index.
lock: $(READY) ## resolve requirements.lock anew
	$(UV) pip compile --upgrade --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" $(EXTRAS:%=--extra %) \
		--output-file requirements.lock --quiet pyproject.toml

clean: ## remove what was built; runs/ stays
	rm -rf .venv .venv-lowest build dist docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment -------------------------------------------------------------------------

# pip is the fallback: it may be set up for an index that uv does not know of.
$(READY): requirements.lock pyproject.toml | $(PY)
	@set -e; \
	uv=$$(grep '^uv==' requirements.lock); \
	if $(PY) -m pip install --quiet --disable-pip-version-check "$$uv" \
		&& $(UV) pip install --quiet -p $(PY) -r requirements.lock; then :; else \
		echo "uv could not install the packages; trying pip, which is slower."; \
		grep -v '^uv==' requirements.lock > .venv/without-uv.txt; \
		$(PY) -m pip install --disable-pip-version-check -r .venv/without-uv.txt; \
	fi; \
	$(PY) -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@touch $@

$(PY):
	@for python in "$(PYTHON)" python3 python3.13 python3.12 python3.11; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			"$$python" -m venv .venv && exit 0; \
			rm -rf .venv; \
			echo "$$python cannot make a virtual environment: install its venv module" \
				"(on Debian and Ubuntu the package python3-venv)." >&2; \
			exit 1; \
		fi; \
	done; \
	echo "snaprl needs Python 3.11 or newer: install it, or name one with PYTHON=." >&2; \
	exit 1
