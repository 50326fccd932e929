# The whole life of the project from a clean clone: `make demo`, `make test`, and the rest below.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH  := torch==2.13.0

.PHONY: help demo test lint sanitize bench studies docs clean install

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

install: $(STAMP) ## make .venv and install the package with its extras

# torch goes in first and pinned, so that the CPU build is taken where only that is wanted.
$(STAMP): pyproject.toml Makefile hatch_build.py $(wildcard src/chronograd/kernels/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[all,test,lint,docs]'
	@touch $@

demo: $(STAMP)   ## train a small model on real text, then ask which truncation to use
	$(BIN)/python -m chronograd demo --run runs/demo

test: $(STAMP)   ## the whole test suite
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(STAMP)   ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

sanitize: $(STAMP) ## the kernels' tests under the address and undefined-behaviour sanitizers
	.ci/sanitize $(BIN)/python

bench: $(STAMP)  ## measure, and write docs/benchmarks.md; JAX=PYTHON has jax, PARTS=a,b measures these sections only
	$(BIN)/python benchmarks/run.py $(if $(JAX),--jax $(JAX)) $(if $(PARTS),--update $(PARTS))

studies: $(STAMP) ## run the studies in full (half an hour), and write their pages and figures
	for study in $(filter-out studies/page.py,$(wildcard studies/*.py)); do $(BIN)/python $$study || exit 1; done

docs: $(STAMP)   ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:           ## remove what the targets made
	rm -rf $(VENV) runs docs/_build build dist .pytest_cache .ruff_cache .hypothesis
