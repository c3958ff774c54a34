# Each target sets up .venv first, once, with the exact versions of requirements.lock.
# ARGS goes to the command: make reproduce ARGS="01 --set seed=1", make test ARGS="-k attacks".

VENV := .venv
BIN := $(VENV)/bin
# a uv that answers (a version manager's shim may not), else one of our own
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo $(VENV)/uv/bin/uv)
NEEDED := crat sets itself up by uv, or by python3 with pip. Install one: uv, or python3-venv (apt install python3-venv)

.PHONY: help reproduce site test test-old-cpu mutants lab notebooks readme lint lock
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ' *## ' '/^[a-z-]+:.* ## / { sub(/:.*/, "", $$1); printf "make %-13s %s\n", $$1, $$2 }' Makefile

reproduce: $(VENV)/.ready ## train on the shipped images, draw every figure and the claims table
	@$(BIN)/crat reproduce $(ARGS)

site: $(VENV)/.ready ## the report as pages, figures/quick/site/index.html (another profile: ARGS="--profile laptop")
	@$(BIN)/crat site $(ARGS)

test: $(VENV)/.ready ## every test, the committed notebooks included
	@$(BIN)/pytest -n logical --maxprocesses=4 --dist=loadscope --no-loadscope-reorder $(ARGS)

test-old-cpu: $(VENV)/.ready ## the numeric tests as on an old CPU: no vector instructions beyond SSE, one thread
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 \
		$(BIN)/pytest -n logical --maxprocesses=4 --dist=loadscope --no-loadscope-reorder -p no:nbval -o addopts=-q --numeric tests $(ARGS)

mutants: $(VENV)/.ready $(VENV)/mutants ## faults put into the package, one at a time: do tests see them? (hours: ARGS="--sample 50")
	@PYTHONPATH=$(CURDIR)/$(VENV)/mutants $(BIN)/python benchmarks/mutants.py $(ARGS)

lab: $(VENV)/.ready ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab $(ARGS) notebooks

notebooks: $(VENV)/.ready ## run the committed notebooks anew and keep their outputs in them
	@cd notebooks && ../$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False \
		--NotebookExporter.preprocessors=crat.batch.pictures.small_pictures $(or $(ARGS),*.ipynb)

readme: $(VENV)/.ready ## write the README's blocks of results anew, from results/ and figures/laptop
	@$(BIN)/python docs/readme_block.py

lint: $(VENV)/.ready ## ruff on code and notebooks, mypy on the package
	@$(BIN)/ruff check .
	@$(BIN)/mypy

lock: $(UV) ## write requirements.lock anew after a change of pyproject.toml (newest versions: ARGS=--upgrade)
	@$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --extra all --python-version 3.11 $(ARGS) \
		pyproject.toml -o requirements.lock

# uv is asked for here, not as a prerequisite: an environment that is ready needs none
$(VENV)/.ready: requirements.lock pyproject.toml
	@test -x $(UV) || $(MAKE) --no-print-directory $(UV)
	@test -x $(BIN)/python || echo "setting up $(VENV): up to 3 GB to download, 6 GB on disk, once"
	@$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' $(VENV)
	@# compiled at once: where Python writes no bytecode, each process would compile torch's sources anew, 10 s a start
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# beside the environment, not in it: nobody else needs it; parso, attrs and coverage are in the lock
$(VENV)/mutants: | $(VENV)/.ready
	@test -x $(UV) || $(MAKE) --no-print-directory $(UV)
	@$(UV) pip install --quiet --python $(BIN)/python --target $@ --no-deps cosmic-ray==8.7.0 stevedore==5.10.0

# Debian's python3 has no ensurepip without python3-venv, but its pip can install into an environment without one
$(VENV)/uv/bin/uv:
	@python3 -m venv --clear $(VENV)/uv >/dev/null 2>&1 || python3 -m venv --clear --without-pip $(VENV)/uv >/dev/null 2>&1 || \
		{ echo "$(NEEDED)" >&2; exit 1; }
	@if $(VENV)/uv/bin/python -m pip --version >/dev/null 2>&1; then $(VENV)/uv/bin/python -m pip install --quiet uv; \
	elif python3 -m pip --version >/dev/null 2>&1; then python3 -m pip --python $(VENV)/uv/bin/python install --quiet uv; \
	else echo "$(NEEDED)" >&2; exit 1; fi
