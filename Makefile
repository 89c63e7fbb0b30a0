# The two commands of a fresh clone: `make attack` and `make test`.
PYTHON ?= python3
VENV := .venv
PIP_OPTIONS := --quiet --disable-pip-version-check

.PHONY: attack test lint clean

attack: $(VENV)/.run
	$(VENV)/bin/python -m experiments.attack_mnist

test: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 16 --dist loadfile --no-loadscope-reorder

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -r requirements.txt
	touch $@

$(VENV)/.test: requirements-test.txt $(VENV)/.run
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV)
