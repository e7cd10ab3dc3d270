# Everything runs in an environment of its own, which the first target that needs it creates.
# `make VENV=/elsewhere test` uses another one; ARGS goes on to the command: `make test ARGS="-k fusion"`.
VENV ?= .venv
PYTHON3 ?= python3
ARGS ?=

PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# torch comes first and by its exact version: whichever build of it the machine offers is then left alone.
TORCH := $(shell sed -n 's/^\(torch==[^; ]*\).*/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help environment demo bench gpu-check ablation test coverage fuzz versions lint types docs clean

help: ## Shows this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

environment: $(INSTALLED) ## Creates the virtual environment with all that is needed here

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --disable-pip-version-check $(TORCH)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

demo: $(INSTALLED) ## Shows a model on photos, teaches another one new words, and draws before and after
	$(PYTHON) scripts/demo.py $(ARGS)

bench: $(INSTALLED) ## Measures speed and memory into docs/performance.md (long, and wants the machine for itself)
	$(PYTHON) benchmarks/speed.py $(or $(ARGS),--preset full --document)

gpu-check: $(INSTALLED) ## Tests and measures everything on a CUDA device into docs/performance.md
	$(PYTHON) scripts/gpu_check.py $(ARGS)

ablation: $(INSTALLED) runs/shapes_trunk/model.safetensors ## Measures what LCE and PAN are worth into docs/results.md (hours)
	$(PYTHON) benchmarks/ablation.py $(or $(ARGS),--document)

runs/shapes_trunk/model.safetensors: | $(INSTALLED)
	$(VENV)/bin/jmceln train configs/shapes_trunk.yaml

# One thread a process: the two processes of the tests share a small machine's cores.
test: export OMP_NUM_THREADS = 1
test: $(INSTALLED) ## Runs all tests
	$(PYTHON) -m pytest --numprocesses 2 --dist worksteal $(ARGS)

# Not one test: torch.compile takes many minutes where each line is watched.
coverage: export OMP_NUM_THREADS = 1
coverage: $(INSTALLED) ## Runs all tests, and lists the lines and branches that none of them takes
	$(PYTHON) -m pytest --numprocesses 2 --dist worksteal --cov -k "not ways_to_save_time_and_memory" $(ARGS)

fuzz: export OMP_NUM_THREADS = 1
fuzz: $(INSTALLED) ## Sends damaged files and odd values to every reader: ARGS="--minutes 5"
	$(PYTHON) -m tests.fuzz.run $(ARGS)

versions: export OMP_NUM_THREADS = 1
versions: export PYTEST_ADDOPTS = --numprocesses 2 --dist worksteal
versions: $(INSTALLED) ## Runs tests on several releases of transformers, and loads what one saved in all others
	$(PYTHON) scripts/check_versions.py $(ARGS)

lint: $(INSTALLED) ## Checks style and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: $(INSTALLED) ## Checks types
	$(VENV)/bin/pyrefly check --python-interpreter-path $(PYTHON)

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(INSTALLED) ## Builds the documentation into site/, and fails on warnings and on links that lead nowhere
	$(PYTHON) -m mkdocs build --strict

clean: ## Removes the environment and all caches
	rm -rf $(VENV) .cache .compat .hypothesis .pytest_cache .ruff_cache *.egg-info site
