PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWER := .venv-lower
STAMP := $(VENV)/installed.stamp
ARGS ?=
# Tests in as many processes, a file at a time in each: files share nothing, the tests of one may share runs. In order of
# their names, the few that start processes of their own are not the last. WORKERS=0 is one process.
WORKERS ?= 2
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# One process on one device; every choice is spelled out so that accelerate neither asks nor warns.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: venv glue test test-slow test-lower lint docs clean

venv: $(STAMP)

$(STAMP): setup.cfg setup.py pyproject.toml constraints/tested.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints/tested.txt -e ".[examples,test]"
	touch $@

# make glue ARGS="--multirate off --seed 1"
glue: venv
	$(LAUNCH) examples/run_glue.py $(ARGS)

test: venv
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow" $(SPREAD)

test-slow: venv
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

# The oldest versions that are supported, in an environment of their own; linters are those of the newest.
test-lower: $(LOWER)/installed.stamp
	HF_HUB_OFFLINE=1 $(LOWER)/bin/python -m pytest -m "not slow" $(SPREAD) $(ARGS)

$(LOWER)/installed.stamp: setup.cfg setup.py pyproject.toml constraints/lower.txt
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints/lower.txt -e ".[examples,test]"
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation in site/. A broken link or a missing page is an error. (With --quiet mkdocs would count no warnings.)
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/docs.stamp: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints/tested.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(LOWER) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
