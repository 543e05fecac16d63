# `make quickstart` and `make test` do all their own set-up in .venv; they need only Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NEW_ENOUGH := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convattn needs Python 3.11 or newer, this is %s; name another: make PYTHON=python3.12" % sys.version.split()[0])'
NOT_BY_HAND := not slow and not gpu and not browser and not weights and not campaign and not interop

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-long test-lowest test-lowest-fast test-latest wheel-test wheel-check browser campaign interop docs gallery check fix

LOWEST := .venv-lowest
LATEST := .venv-latest
INTEROP := .venv-interop
FAST := tests/layers tests/kernels tests/test_functional.py tests/test_config.py tests/test_modes.py

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(INSTALLED): pyproject.toml constraints.txt
	@$(NEW_ENOUGH)
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

# Warnings of packages as old as that are not ours to mend.
$(LOWEST)/.installed: pyproject.toml
	@$(NEW_ENOUGH)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check --quiet uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[all,dev]'
	touch $@

test-lowest: $(LOWEST)/.installed ## Run the tests with the lowest versions that are promised (7 GB in .venv-lowest)
	$(LOWEST)/bin/python -m pytest -o filterwarnings=default -n 2 --dist worksteal -m "$(NOT_BY_HAND)"

test-lowest-fast: $(LOWEST)/.installed ## The same for layers, kernels and maths alone
	$(LOWEST)/bin/python -m pytest -o filterwarnings=default -m "not long and $(NOT_BY_HAND)" $(FAST)

test-latest: ## Run the tests with the newest versions there are, in .venv-latest
	@$(NEW_ENOUGH)
	test -x $(LATEST)/bin/python || $(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[all,dev]'
	$(LATEST)/bin/python -m pytest -n 2 --dist worksteal -m "$(NOT_BY_HAND)"

# Where the links of the description lead: see hatch_build.py.
wheel-test wheel-check: export CONVATTN_REPOSITORY ?= https://repository.invalid/convattn

wheel-test: ## Build the wheel, install it with all it needs into an empty environment, walk through it
	@$(NEW_ENOUGH)
	rm -rf build/wheel && mkdir -p build/wheel
	$(PYTHON) -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt build/wheel/*.whl
	cd build/wheel && env/bin/python -I ../../tests/walk_wheel.py

wheel-check: $(INSTALLED) ## The same in seconds: dependencies are those of .venv
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install --disable-pip-version-check --quiet --no-deps build/wheel/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > build/wheel/borrowed.pth
	mv build/wheel/borrowed.pth $$(build/wheel/env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	cd build/wheel && env/bin/python -I ../../tests/walk_wheel.py

browser: $(INSTALLED) ## Run the tests of pages in headless Chromium, which the system must have
	$(BIN)/python -m pytest -m browser tests/demo tests/checks

campaign: $(INSTALLED) ## Kill, damage and attack everything (half an hour), write docs/results/campaign.md
	CONVATTN_CAMPAIGN=docs/results/campaign.md $(BIN)/python -m pytest -n 2 --dist load -m campaign tests/campaign

interop: ## Run the tests with other people's tools, in an environment of their own (.venv-interop)
	@$(NEW_ENOUGH)
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --disable-pip-version-check --upgrade 'pip>=25.1'
	$(INTEROP)/bin/python -m pip install --disable-pip-version-check --editable '.[all,dev]' --group interop
	$(INTEROP)/bin/python -m pytest -m interop tests/interop

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
