# driftline: everything starts here. `make demo` and `make test` do all their own set-up.
# Needs Python 3.11, 3.12 or 3.13, make and a Python package index; a second run skips what is done.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMPS := $(VENV)/stamps
TOOLS := $(VENV)/tools/bin
# pip of the tools' own environment; a lock that is not there yet, or broken, must not keep `make lock` from writing it
TOOLED = { $(BIN)/python -m venv $(VENV)/tools && $(TOOLS)/python -m pip --disable-pip-version-check --quiet install \
	--require-hashes --requirement tools/requirements.lock; } >&2

# One thread for each process: the stages run beside each other, and contending threads are slower than one.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export PATH := $(abspath $(BIN)):$(PATH)
# What would send the packages elsewhere than into the environment; where they come from stays the user's business.
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_REQUIREMENT PIP_CONSTRAINT PIP_REQUIRE_HASHES

# Many tests wait for a broker or a process more than they compute: three at a time on two cores. JOBS=0 runs them in one process.
JOBS ?= 3
PYTEST := python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test check replay quality proto lock audit settings clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

setup: $(STAMPS)/packages $(STAMPS)/kernels $(STAMPS)/models ## virtual environment, locked packages, compiled kernels, model files

demo: setup ## the whole way on the bundled shop, some minutes; ARGS=--keep, ARGS='--data games', ARGS='--git DIR'
	@driftline demo $(ARGS)

test: setup ## every test that this machine can run; ARGS='tests/graph -k name'
	@$(PYTEST) $(ARGS)

check: setup ## lint, format, types, known vulnerabilities, then the tests
	@ruff check .
	@ruff format --check .
	@mypy
	@$(MAKE) --no-print-directory audit
	@$(PYTEST) $(ARGS)

replay: setup ## evaluate on the bundled shop, to out/replay; ARGS='--out DIR'
	@driftline replay $(ARGS)

quality: setup ## three seeds, both splits, ablations: hours, resumable
	@python -m driftline.stream.replay.quality $(ARGS)

proto: setup ## generated code from serving/proto
	@cd serving/proto && buf lint
	@python -m grpc_tools.protoc --proto_path=serving/proto --python_out=client --pyi_out=client --grpc_python_out=client \
		--mypy_grpc_out=client serving/proto/driftline/v1/recommendation.proto

lock: $(STAMPS)/venv ## write the locks, with hashes, from what is installed and what pyproject.toml adds
	@test -x $(TOOLS)/uv || $(TOOLED)
	@$(PIP) install packaging >&2
	@PATH="$$PATH:$(abspath $(TOOLS))" $(BIN)/python tools/lock.py

audit: $(STAMPS)/venv ## known vulnerabilities of the locked packages; says so where none can be looked up
	@test -x $(TOOLS)/pip-audit || $(TOOLED) || true
	@$(BIN)/python tools/audit.py $(abspath $(TOOLS))/pip-audit

settings: setup ## configs/default.yaml from configs/settings.py
	@python -m driftline.configs.reference

clean: ## what a run leaves behind; the virtual environment and the models stay
	@rm -rf build client/build .driftline .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------------------------- set-up
# A stamp is written last, so an interrupted step is done again. All progress goes to stderr.

TICK ?= 30
# $(call ticking,2/5) says every TICK seconds that a quiet step goes on, as long as the shell of the recipe lives
ticking = s=0; while sleep $(TICK) >/dev/null 2>&1; do s=$$((s + $(TICK))); echo "set-up $(1): $$s s so far" >&2; done & \
	ticks=$$!; trap "kill $$ticks 2>/dev/null" EXIT; trap "exit 130" INT TERM;

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 was not found: install one, or make PYTHON=/path/to/python3.11" >&2; exit 66; }
	@echo "set-up 1/5: virtual environment in $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/locked: requirements.lock requirements-dev.lock requirements-torch.lock | $(STAMPS)/venv
	@echo "set-up 2/5: $$(cat $^ | grep -c '^[a-z].*==') locked packages, a few minutes the first time" >&2
	@$(call ticking,2/5) $(PIP) install --no-deps --require-hashes -r requirements.lock -r requirements-dev.lock >&2
	@$(call ticking,2/5) $(PIP) install -r requirements-torch.lock >&2
	@touch $@

$(STAMPS)/packages: pyproject.toml client/pyproject.toml $(STAMPS)/locked
	@echo "set-up 3/5: driftline itself" >&2
	@$(call ticking,3/5) $(PIP) install --no-deps --no-build-isolation -e client -e . >&2
	@touch $@

$(STAMPS)/kernels: $(shell grep -l compiled graph/*.py model/*.py) | $(STAMPS)/packages
	@echo "set-up 4/5: machine code for graph and models, a minute once" >&2
	@$(call ticking,4/5) python -c "import driftline.stream.learn.learner, driftline.model.sequence" >&2
	@touch $@

$(STAMPS)/models: llm/fetch.py | $(STAMPS)/packages
	@echo "set-up 5/5: language model and text encoder, 180 MB once" >&2
	@$(call ticking,5/5) python -m driftline.llm.fetch >&2
	@touch $@
