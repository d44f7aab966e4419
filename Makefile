# driftline: everything starts here. `make demo` and `make test` do all their own set-up.
# Needs Python 3.11, make and a Python package index; a second run skips what is done.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
PACKAGES := configs graph llm model serving stream
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMPS := $(VENV)/stamps

# One thread for each process: the stages run beside each other, and contending threads are slower than one.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check replay quality proto lock settings clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

setup: $(STAMPS)/packages $(STAMPS)/models ## virtual environment, locked packages, model files

demo: setup ## the whole way on the bundled shop, under five minutes; ARGS=--json, ARGS=--keep
	@driftline demo $(ARGS)

test: setup ## every test that this machine can run; ARGS='tests/graph -k name'
	@python -m pytest $(ARGS)

check: setup ## lint, format, types, then the tests
	@ruff check .
	@ruff format --check .
	@mypy $(PACKAGES)
	@python -m pytest $(ARGS)

replay: setup ## evaluate on the bundled shop; ARGS='--out DIR'
	@driftline replay $(ARGS)

quality: setup ## three seeds, both splits, ablations: hours, resumable
	@python -m stream.evaluate.quality $(ARGS)

proto: setup ## generated code from serving/proto
	@cd serving/proto && buf lint
	@python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. \
		serving/proto/driftline/v1/recommendation.proto

lock: setup ## write requirements.lock from what is installed
	@{ sed -n '/^#/p' requirements.lock; $(PIP) freeze --all --exclude-editable \
		| grep -v -E '^(pip|wheel)==' | sed 's/+cpu$$//'; } > requirements.lock.tmp
	@mv requirements.lock.tmp requirements.lock

settings: setup ## configs/default.yaml from configs/settings.py
	@python -m configs.reference

clean: ## what a run leaves behind; the virtual environment and the models stay
	@rm -rf .driftline .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------------------------- set-up
# A stamp is written last, so an interrupted step is done again. All progress goes to stderr.

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found: install it, or make PYTHON=/path/to/python3.11" >&2; exit 66; }
	@echo "set-up 1/4: virtual environment in $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/locked: requirements.lock | $(STAMPS)/venv
	@echo "set-up 2/4: locked packages, a few minutes the first time" >&2
	@$(PIP) install -r requirements.lock >&2
	@touch $@

$(STAMPS)/packages: pyproject.toml $(STAMPS)/locked
	@echo "set-up 3/4: driftline itself" >&2
	@$(PIP) install --no-deps --no-build-isolation -e . >&2
	@touch $@

$(STAMPS)/models: llm/fetch.py | $(STAMPS)/packages
	@echo "set-up 4/4: language model and text encoder, 180 MB once" >&2
	@python -m llm.fetch >&2
	@touch $@
