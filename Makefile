# Each target does its own set-up; a second run starts at once. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export VIRTUAL_ENV :=

.PHONY: help setup demo test check fuzz
help:                ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY)      ## an environment in .venv with everything the project needs
demo: $(READY)       ## the main job: four hospitals, epsilon 3, encrypted; prints the path of the report
	@$(BIN)/veilfed simulate
test: $(READY)       ## all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q
check: $(READY)      ## format, lint, types and the fast tests
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"

fuzz: $(READY)       ## 200,000 hostile inputs to every decoder of bytes from outside
	@VEILFED_FUZZ=200000 $(BIN)/python -m pytest tests/fuzz -q --timeout 0

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)
