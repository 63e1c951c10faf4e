# From a bare checkout with Python >= 3.11: `make read` and `make test` set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: read test test-slow lint clean

read: $(VENV)/read.stamp
	@$(BIN)/trocr-jax read examples --format tsv

test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest -q --durations=20 --numprocesses=auto --maxprocesses=4 --dist=worksteal

# compiled as users have it: at its default, this flag keeps the tests from adding their quick ones
test-slow: export XLA_FLAGS = --xla_backend_optimization_level=3
test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/pyright

$(VENV)/read.stamp: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing trocr-jax into $(VENV), once: some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/read.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/libtpu \
	  "$$($(BIN)/python -c "from importlib.metadata import requires; print(next(r.split(';')[0] for r in requires('jax') if r.startswith('libtpu')))")"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
