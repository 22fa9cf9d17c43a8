# `make demo` and `make test` need nothing but Python 3.11 or newer: they make .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test fast test-slow lint clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[text,dicom,xlsx]" --group dev
	touch $@

demo: .venv/installed
	$(BIN)/lingula demo

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The checks use one core, and so run beside the tests.
test: .venv/installed
	@$(MAKE) --no-print-directory --jobs=2 lint fast

fast: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist worksteal

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2 --durations=12

clean:
	rm -rf .venv
