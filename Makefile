# Everything runs in .venv, made on first use; constraints.txt pins what is tested.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= 2

# Tests and measurements run in parallel processes, one thread each.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

ZOO ?= ../shared/zoo.json
EXAMPLES ?= 1000
SHARE ?= 1
NAME ?= surgery

.PHONY: demo test test-slow test-gpu mutants zoo bench docs lint types install clean
.DEFAULT_GOAL := test

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## real digits, no download, about a minute
	$(BIN)/secateur demo --out runs/demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

test: lint types  ## all checks, then all tests but the slow ones
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow"

test-slow: $(STAMP)  ## the slow tests alone: every size of every family, more pages, mutants and networks of libraries
	$(BIN)/pytest -n $(JOBS) -m slow

test-gpu: $(STAMP)  ## what needs a GPU, with a PyTorch for CUDA in .venv
	SECATEUR_GPU=1 $(BIN)/pytest tests/test_gpu.py

zoo: $(STAMP)  ## a thousand random networks, then the networks of other libraries and of a list (ZOO=FILE), cut and verified: an hour or so
	SECATEUR_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -n $(JOBS) tests/graph/test_random_networks.py
	$(BIN)/python -m benchmarks.zoo benchmarks/families.toml $(ZOO) --out runs/zoo --jobs $(JOBS)

mutants: $(STAMP)  ## break the engine in some thousand ways, and see that no wrong cut passes: an hour (SHARE=0.3: half of it)
	$(BIN)/python -W ignore -m tests.mutants.run --out runs/mutants --jobs $(JOBS) --share $(SHARE)

docs: $(STAMP)  ## the site of documents into build/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)  ## one benchmark (NAME=surgery), written to its result file and the documents; quiet machine
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks run $(NAME)
	$(BIN)/python -m benchmarks render

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
