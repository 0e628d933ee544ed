# Everything starts from `make`: each target makes the environment first where it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
PAPERS ?=
LAB ?=

.DEFAULT_GOAL := help
.PHONY: help setup book pdf test lint lab gpu benchmark costs lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
	@echo 'PAPERS="simclr nutime" restricts `make book`; JOBS=4 gives it and `make test` four processes; PYTHON=python3.13 chooses'
	@echo 'the interpreter; LAB="--no-browser --port 9000" goes to JupyterLab.'

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("make: needs Python 3.11 or later, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@

setup: $(READY)  ## make or refresh the environment in .venv
	@echo 'ready: source $(BIN)/activate, or use $(BIN)/sslref'

book: $(READY)  ## execute the chapters that changed and build the book into _build/html
	$(BIN)/sslref book --jobs $(JOBS) $(if $(PAPERS),--papers "$(PAPERS)")

pdf: $(READY)  ## the book as one PDF, _build/sslref.pdf; needs Chromium
	$(BIN)/sslref book --pdf --jobs $(JOBS)

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## style, layers of the package, notebooks without outputs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	@find notebooks -name '*.ipynb' -not -path '*/.*' -print0 2>/dev/null | xargs -0 -r $(BIN)/nbstripout --verify --keep-id

lab: $(READY)  ## open the notebooks in JupyterLab
	@# this environment's kernel and not another one of the user's; threads and hashes as in the book, for its numbers
	env -u JUPYTER_PATH JUPYTER_PREFER_ENV_PATH=1 PYTHONHASHSEED=0 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
		$(BIN)/jupyter lab --notebook-dir '$(CURDIR)' --LabApp.default_url=/lab/tree/notebooks $(LAB)

gpu: $(READY)  ## check the implementations on this machine's GPU and measure them
	$(BIN)/sslref gpu-check --device cuda

benchmark: $(READY)  ## time a step of masked modelling against Hugging Face's ViTMAE
	$(BIN)/python -m pip install --quiet --constraint requirements.lock 'transformers>=5'
	$(BIN)/python benchmarks/masked_step.py --out benchmarks/masked_step.json

costs: $(READY)  ## write what the chapters took in the last build into book/results/costs.json, which their heads quote
	$(BIN)/python -m sslref.publish.costs

lock: $(READY)  ## write the versions that are installed now into requirements.lock
	$(BIN)/python -m pip freeze --exclude-editable | grep -v -i -E '^(nvidia|cuda|triton)' | sed 's/+[a-z0-9.]*$$//' > requirements.lock
	@touch $(READY)

clean:  ## remove what was built, but not the environment
	rm -rf _build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
