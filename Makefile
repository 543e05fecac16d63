# `make quickstart` and `make test` do all their own set-up in .venv; they need only Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NOT_BY_HAND := not slow and not gpu and not browser and not weights and not campaign and not interop

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-long browser campaign interop docs gallery check fix

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convattn needs Python 3.11 or newer, this is %s; name another: make PYTHON=python3.12" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev,docs]'
	touch $@

setup: $(INSTALLED) ## Install everything into .venv

quickstart: $(INSTALLED) ## Train a small attention network on digits in clutter, test it, show where it looks (2 minutes)
	$(BIN)/convattn train quickstart

test: $(INSTALLED) ## Run the fast tests (six minutes)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long and $(NOT_BY_HAND)"

test-long: $(INSTALLED) ## Run the tests that take seconds each (five minutes more)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "long and $(NOT_BY_HAND)"

browser: $(INSTALLED) ## Run the tests of pages in headless Chromium, which the system must have
	$(BIN)/python -m pytest -m browser tests/demo tests/checks

campaign: $(INSTALLED) ## Kill, damage and attack everything (half an hour), write docs/campaign.md
	CONVATTN_CAMPAIGN=docs/campaign.md $(BIN)/python -m pytest -n 2 --dist load -m campaign tests/campaign

interop: ## Run the tests with other people's tools, in an environment of their own (.venv-interop)
	test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --disable-pip-version-check --upgrade 'pip>=25.1'
	.venv-interop/bin/python -m pip install --disable-pip-version-check --editable '.[all,dev]' --group interop
	.venv-interop/bin/python -m pytest -m interop tests/interop

docs: $(INSTALLED) ## Build the documentation into site/ (seconds); broken links and assets from elsewhere are errors
	$(BIN)/zensical build --clean --strict
	! grep -rEl '<(script|link|img|iframe)[^>]+(src|href)="?(https?:)?//' --include='*.html' site

gallery: $(INSTALLED) ## Run examples/, write their pages and pictures into docs/gallery/
	$(BIN)/python benchmarks/gallery.py

check: $(INSTALLED) ## Format, lint, types and import direction; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(INSTALLED) ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
