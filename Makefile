# The two commands of a fresh clone are `make attack` and `make test`.
PYTHON ?= python3
VENV := .venv
PIP_OPTIONS := --quiet --disable-pip-version-check

.PHONY: attack test docs lint clean

attack: $(VENV)/.run
	$(VENV)/bin/python -m experiments.attack_mnist

test: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 16 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

lint: $(VENV)/.lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -r requirements.txt
	touch $@

$(VENV)/.test: requirements-test.txt $(VENV)/.run
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -r requirements-test.txt
	touch $@

$(VENV)/.docs: requirements-docs.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -r requirements-docs.txt
	touch $@

$(VENV)/.lint: requirements-lint.txt $(VENV)/.run
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -r requirements-lint.txt
	touch $@

clean:
	rm -rf $(VENV)
