# Targets install what they need into .venv. They need Python 3.11 or newer, and git.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo test test-fast lint ui ui-check bench lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: .venv/ready ## make .venv with the packages of requirements.lock

demo: preflight-demo .venv/ready ## train and evaluate on the rendered sample data set
	dvc repro
	@echo
	@echo "Look at    data/evaluate/gallery.jpg  annotated people beside predicted ones"
	@echo "           data/evaluate/report.md    scores and kinds of errors"
	@echo "           data/ingest/sheet.jpg      what the network was trained on"
	@echo "Try next   source .venv/bin/activate"
	@echo "           personlab predict photo.jpg        people in a photo of yours"
	@echo "           dvc exp run -S decode.nms=hard     another decoder: runs infer and evaluate again"
	@echo "           make ui                            flows, schedules and batches in the browser"

# tests/conftest.py says which tests share a process.
test: preflight-test .venv/ready .cache/azurite/ready ## run all tests
	pytest --numprocesses=2 --no-loadscope-reorder

test-fast: preflight-test .venv/ready ## run the tests that start no cluster or pipeline
	pytest -m "not slow"

lint: .venv/ready ## check style, format and types (ruff, mypy)
	ruff check .
	ruff format --check .
	mypy

ui: .venv/ready ## serve the flows and the Prefect UI on 127.0.0.1:4200
	python -m flows.ui

ui-check: .venv/ready ## test the UI in headless Chromium, write screenshots to docs/ui
	python -m tests.ui_check

bench: .venv/ready ## measure the codec beside tfjs body-pix, write .cache/bench.json
	python -m benchmarks.codec --json .cache/bench.json

lock: ## resolve the newest versions and write requirements.lock
	rm -rf .venv && $(PYTHON) -m venv .venv && pip install --quiet ".[dev]" && pip uninstall --quiet --yes personlab
	(echo "# Every package of the working set, exact. Made by 'make lock' from pyproject.toml." && \
	 pip freeze | sed 's/+cpu$$//') > requirements.lock

clean: ## remove the environment and caches, keep data
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Azure's storage server, for tests; they skip what needs it where there is no npm.
.cache/azurite/ready:
	-npm install --silent --no-audit --no-fund --prefix $(@D) azurite@3.35.0 && touch $@

preflight-%:
	@$(PYTHON) personlab/utils/preflight.py $*

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) personlab/utils/preflight.py install
	$(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check -r requirements.lock
	pip install --quiet --disable-pip-version-check --no-deps --editable .
	python -m personlab.codec.warmup
	@touch $@
