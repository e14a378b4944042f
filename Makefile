PYTHON ?= python3
BIN := .venv/bin

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.venv/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,dev,slurm]'
	@touch $@

run: .venv/run ## install if needed, then train, retrain, unlearn and audit on digits
	$(BIN)/python run.py

test: .venv/dev ## install if needed, then run the tests
	$(BIN)/python -m pytest -n 2

faults: .venv/dev ## kill, damage and confuse runs in earnest: ten times what `make test` does
	UNLEARN_FAULTS=300 $(BIN)/python -m pytest -n 2 tests/faults

lint: .venv/dev ## check style and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/dev ## check types
	$(BIN)/mypy

tables: .venv/run ## rebuild the tables of the README and docs from results/rows
	$(BIN)/python scripts/table.py --update README.md docs/*.md
	$(BIN)/python scripts/conjectures.py --update docs/tables.md

pages: .venv/run ## rebuild the pages of methods and auditors
	$(BIN)/python scripts/pages.py

docs: tables pages ## rebuild all of the documentation that is generated

bench: .venv/run ## measure speed against public alternatives
	failed=0; for file in benchmarks/*.py; do $(BIN)/python $$file || failed=1; done; exit $$failed

clean: ## remove what tools leave behind; never the store
	rm -rf .mypy_cache .ruff_cache .pytest_cache build dist

.PHONY: help run test faults lint types tables pages docs bench clean
