# `make demo` and `make test` need Python 3.11+ and Java 17+, and install everything else into .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test soak lint wheel clean

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Nightlist needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@command -v java >/dev/null || [ -x "$$JAVA_HOME/bin/java" ] || { echo "no Java: Spark needs Java 17 or newer; install it, or set JAVA_HOME"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[jobs,api,cassandra,dev]'
	@touch $@

demo: install
	$(BIN)/nightlist demo

# Two processes by file: half of a test's time is one Spark or another getting up.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Half an hour of random faults on three Cassandra nodes; ARGS="--minutes 5 --seed 7" makes it another one.
soak: install
	$(BIN)/python -m tests.soak $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Spark's --py-files takes a .zip and ignores a .whl: the same archive under both names.
wheel: install
	@rm -rf build dist
	@$(BIN)/python -m build --quiet --wheel --no-isolation
	@cp dist/nightlist-*.whl dist/nightlist.zip

clean:
	rm -rf .venv build dist nightlist-demo nightlist-data *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
