# The two commands of the book: `make book` and `make test`. All else hangs below them; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(sort $(wildcard chapters/*.ipynb appendix/*.ipynb))
FIRST_PAGE := _build/html/index.html

# A user's own settings must not lead pip, or the kernels that run the chapters, out of the environment.
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONHOME PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help book test env lint unit nbval html-tests notebooks explorer-data browser lock clean

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.12]"
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: env  ## execute the chapters on this machine's device (cached) and build the pages
# After a failure Sphinx would remember the pages but not their warnings, and a second try would pass: forget the pages.
	$(BIN)/jupyter-book build . -W -n --keep-going || { rm -rf _build/.doctrees _build/html; exit 1; }
	@echo
	@echo "The book is built. Open its first page: $(CURDIR)/$(FIRST_PAGE)"

test: env  ## all that CI runs: ruff, unit tests, the committed outputs, the book build, the built pages
	-@$(MAKE) --no-print-directory browser
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory nbval
	$(MAKE) --no-print-directory book
	$(MAKE) --no-print-directory html-tests
	@echo "All tests passed."

lint: env  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: env  ## the tests that need no built pages, a module to each core
	$(BIN)/python -m pytest -q -n auto --dist loadscope -m "not html" tests

nbval: env  ## run every chapter, each on a core, and compare with its committed outputs
	$(if $(NOTEBOOKS),$(BIN)/python -m pytest -q -n auto --dist loadscope --nbval --nbval-current-env $(NOTEBOOKS),@echo "no notebooks yet")

html-tests: env  ## the tests of the built pages (after `make book`)
	$(BIN)/python -m pytest -q -m html tests

notebooks: env  ## execute the chapters and write their outputs, normalised, into the notebooks
	$(BIN)/lsbook notebooks

explorer-data: env  ## write the data of the explorers anew: from stored runs, and small networks while they train
	$(BIN)/python _ext/projection_data.py
	$(BIN)/python _ext/growth_data.py
	$(BIN)/python _ext/reliability_data.py

# The environment is made once, and again when the lock or pyproject.toml changes. The stamp is the last thing
# written and `.making` the first, so that an install that was killed is thrown away instead of trusted. The stamp
# holds the checkout's path, which the programs in the environment know too: one that was moved is made afresh.
STAMP := $(VENV)/.complete
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
env: $(STAMP)  ## make .venv from the lock

$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here: install Python 3.11 or newer, or name one: make book PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "The book needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name a newer one: make book PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@if [ -e $(VENV)/.making ]; then echo "An earlier install did not finish: starting afresh."; rm -rf $(VENV); fi
	@if [ -s $@ ] && [ "$$(cat $@)" != "$$(pwd -P)" ]; then echo "The checkout was moved: starting afresh."; rm -rf $(VENV); fi
	@rm -f $@; mkdir -p $(VENV); touch $(VENV)/.making
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the lock into $(VENV): minutes, the first time, and 1 to 6 GB of disk (torch)."
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.making; pwd -P > $@

browser:  ## find Chromium or Chrome (first, what CHROME names) for the tests in a browser; install Debian's as root
	@for b in $${CHROME:+"$$CHROME"} chromium chromium-browser google-chrome google-chrome-stable \
	  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do \
	  if command -v "$$b" >/dev/null; then echo "Browser for the tests: $$(command -v "$$b")"; exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else \
	  echo "No Chromium or Chrome found: the tests in a browser will be skipped (under CI they fail)."; \
	  echo "To run them: apt-get install chromium (Debian), brew install --cask google-chrome (macOS), or set CHROME."; exit 1; \
	fi

# uv resolves for every platform at once; it lives in a folder that is thrown away. It is not given pip's local
# wheel folders, so that no machine's own build of torch enters the lock.
lock:  ## write requirements.txt anew from pyproject.toml
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	$(PYTHON) -m venv $$dir && $$dir/bin/pip install --quiet uv && \
	$$dir/bin/uv pip compile pyproject.toml --extra book --extra test --universal --python-version 3.11 \
	  --fork-strategy fewest --upgrade --no-header --no-annotate --quiet --output-file $$dir/lock.txt && \
	{ echo "# The complete lock of the book, for Python 3.11 and newer on Linux and macOS (Apple silicon, 14 or newer)."; \
	  echo "# Written by \`make lock\`; do not edit. On Linux, torch's CUDA wheel adds its own, exactly pinned, packages."; \
	  cat $$dir/lock.txt; } > requirements.txt
	@echo "requirements.txt: $$(grep -c == requirements.txt) packages"

clean:  ## remove the built pages and every cache (the environment stays)
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
