# make install  install only
# make demo    install, train two submissions on two workloads, score them
# make test    install, run the tests that take minutes
# make test-slow  run the others
# make test-long  run those that .ci/run leaves out, for its hour
# make test-oldest  some of the tests, with the oldest packages that we say we support
# make test-slurm start a Slurm on this machine (Debian's slurmctld, slurmd, munge)
# make lint    ruff and mypy
# make leaderboard  score the committed records, draw their page in runs/
# make clean   remove what the above have made; other runs in runs/ stay
#
# Needs Python 3.11 or newer; uv is used where it is found, else pip. All goes to .venv.

SHELL := /bin/sh
BIN := .venv/bin
# Another interpreter: make demo PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	{ echo $$p; break; }; done)

# Compiling, which takes most of their time, keeps one core busy. Tests of a file share
# what they have compiled.
PARALLEL := --numprocesses 2 --dist loadfile

.PHONY: install demo test test-slow test-long test-oldest test-slurm lint leaderboard clean

install: .venv/core
	@echo "installed: $(BIN)/algoperf; 'source $(BIN)/activate' puts it on the path"

demo: .venv/core
	$(BIN)/algoperf demo

test: .venv/dev
	$(BIN)/python -m pytest -m "not slow and not alone and not slurm" $(PARALLEL)
	$(BIN)/python -m pytest -m "not slow and alone"

test-slow: .venv/dev
	$(BIN)/python -m pytest -m "slow and not alone and not long" $(PARALLEL)
	$(BIN)/python -m pytest -m "slow and alone"

test-long: .venv/dev
	$(BIN)/python -m pytest -m long $(PARALLEL)

# What depends on them most: harness, input, scoring.
test-oldest: .venv-oldest/dev
	.venv-oldest/bin/python -m pytest -m "not slow and not alone and not slurm" \
		$(PARALLEL) tests/algoperf/test_*.py tests/algoperf/data tests/scoring

test-slurm: .venv/dev
	$(BIN)/python -m pytest -m slurm

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

leaderboard: .venv/dev
	rm -rf runs/leaderboard
	$(BIN)/python docs/make_leaderboard.py --unpack runs/leaderboard
	$(BIN)/algoperf score runs/leaderboard --time idealized --interpolate \
		--reference adamw --step_times docs/step_times.json \
		--report runs/leaderboard.html

clean:
	rm -rf .venv .venv-oldest runs/demo* runs/leaderboard* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .jax_cache

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one, or \
	give PYTHON=/path/to/python"; exit 1; }
	@if command -v uv >/dev/null; then uv venv --quiet --python "$(PYTHON)" .venv; \
	else "$(PYTHON)" -m venv .venv || { echo "cannot make .venv: on Debian or Ubuntu, \
	apt install python3-venv"; exit 1; }; fi

# install EXTRAS: into .venv, editable
define install
	@echo "installing algoperf$(1) into .venv ..."
	@if command -v uv >/dev/null; \
	then uv pip install --quiet --python $(BIN)/python -e '.$(1)'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(1)'; fi
	@touch $@
endef

.venv/core: pyproject.toml | .venv/bin/python
	$(call install,)

.venv/dev: pyproject.toml | .venv/bin/python
	$(call install,[dev])

# Of dev and of the extras that it has.
.venv-oldest/dev: pyproject.toml
	@echo "installing algoperf[dev] at its oldest into .venv-oldest ..."
	@"$(PYTHON)" -m venv --clear .venv-oldest
	@.venv-oldest/bin/python tests/helpers/lower_bounds.py core figures full slurm dev \
		> .venv-oldest/oldest.txt
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-oldest/oldest.txt -e '.[dev]'
	@touch $@
