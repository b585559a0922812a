# `make demo` and `make test` need nothing but Python 3.11 to 3.13: what they use is installed into
# .venv on first use, and again only when the requirements change.

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# A process compiles on one core; every file's tests stay together, for what they share.
ON_ALL_CORES := -n auto --maxprocesses=8 --dist loadfile

# The CPU unless another platform is asked for, as in JAX_PLATFORMS=cuda make bench.
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-slow lint format bench clean

demo: $(INSTALLED)
	$(BIN)/xtra demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ON_ALL_CORES)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ON_ALL_CORES)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/shellcheck launch/*.sh benchmarks/*.sh .ci/run

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Beside PyTorch where that is in $(VENV); where it is not, the results say how to install it.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt setup.py
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: name one, as in" \
		"make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV): a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet -r requirements.txt
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
