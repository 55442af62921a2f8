# Needs GNU make and Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
GOALS := $(or $(MAKECMDGOALS),setup)

.PHONY: help setup bench-setup demo test lint screenshots clean libraries display
.DEFAULT_GOAL := help

help:
	@echo 'make demo         open napari with a sample scan and the panel'
	@echo 'make test         run the tests'
	@echo 'make lint         check style, types, import directions and the plugin manifest'
	@echo 'make screenshots  draw the pictures of the documentation again'
	@echo 'make setup        install everything into $(VENV) (the other targets do this first)'
	@echo 'make bench-setup  install the libraries that the benchmarks compare with'
	@echo 'make clean        remove caches and build outputs, not $(VENV)'

setup: libraries $(STAMP)

demo: setup
	@$(BIN)/napari-cease demo

# torchattacks asks for torchvision, which it does not use and which drags in another torch, and for old requests.
bench-setup: setup
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev,bench]'
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps 'torchattacks==3.5.1'

test: setup display
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/npe2 validate napari-cease

screenshots: setup
	@$(BIN)/python docs/screenshots.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find cease_core napari_cease tests benchmarks docs scripts -type d -name __pycache__ -prune -exec rm -rf {} +

libraries:
	@sh scripts/system_libraries.sh

# The windows of the tests open on a display of their own (pytest-xvfb); without one Qt aborts the whole run.
display:
	@if [ "$$(uname -s)" = Linux ] && ! command -v Xvfb >/dev/null && [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ]; then \
		echo "Xvfb is missing and there is no display, so the tests of the windows cannot run; install it with: sudo apt-get install -y xvfb xauth" >&2; \
		exit 1; \
	fi

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found; install Python 3.11 or newer, then run: make $(GOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old; install Python 3.11 or newer and name it: make $(GOALS) PYTHON=python3.11" >&2; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || sh scripts/virtual_environment.sh $(PYTHON) $(VENV)
	@echo "Installing into $(VENV); the first time this takes some minutes."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@
