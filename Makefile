# One command each. Everything happens in .venv; only Python 3.11+, pip and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
export OMP_WAIT_POLICY = PASSIVE
export TOKENIZERS_PARALLELISM = false
unexport PYTHONDONTWRITEBYTECODE  # without bytecode every process compiles every file again
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
TWO := -n 2 --maxprocesses 2 --dist loadfile

.PHONY: setup bench demo quickstart-table reproduce-small reproduce-digits reproduce-text reproduce-pictures reproduce-paper rehearse-paper rehearse-paper-gpu format check test test-slow coverage mutants test-deployment test-deployment-short docs house clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH) -e '.[dev,docs,text,video,flower,llm]'
	touch $(STAMP)

demo: setup  ## the built-in experiment with seven methods: table and report; three minutes of one core
	$(BIN)/fedpeft sweep --out runs/demo
	$(BIN)/fedpeft report runs/demo --out runs/demo/report.html

quickstart-table: setup  ## the README's table, over three seeds
	$(BIN)/fedpeft sweep --over seed=1,2,3 --out runs/quickstart-table

CHARACTERS := $(basename $(notdir $(wildcard experiments/characters/table*.toml)))
reproduce-small: setup  ## the claims on the characters with three seeds; resumable; 40 minutes on 2 cores
	for table in $(CHARACTERS); do \
	  $(BIN)/fedpeft sweep experiments/characters/$$table.toml --over seed=1,2,3 \
	    --out runs/characters/$$table || exit $$?; \
	done
	$(BIN)/fedpeft report $(CHARACTERS:%=runs/characters/%) --out runs/characters/report.html
	$(BIN)/fedpeft claims $(CHARACTERS:%=runs/characters/%)

GRIDS := table1 table2 table3 table4 backbone gap
SMALL := runs/small
ONE := ,clients_per_round=8,seed=1
reproduce-digits: setup  ## the paper's tables and figures on digits; resumable; about an hour on 2 cores
	for grid in $(GRIDS); do \
	  $(BIN)/fedpeft sweep experiments/small/$$grid.toml --over seed=1,42,3407 \
	    --out $(SMALL)/$$grid || exit $$?; \
	done
	$(BIN)/fedpeft run experiments/small/theorem.toml --out $(SMALL)/theorem --resume
	$(BIN)/fedpeft theorem $(SMALL)/theorem --sample 128
	$(BIN)/fedpeft gap --reference pretraining=glyphs@train --data held-out-fonts=glyphs@test \
	  --data digits --data digits-strokes --data digits-inverted --data digits-blurred \
	  --data digits-permuted --sample 1500 --out $(SMALL)/gap-sets
	$(BIN)/fedpeft gap --out $(SMALL)/gap-methods $(foreach m,head bias adapter prompt full,\
	  $(m)=$(SMALL)/table1/method=$(m)$(ONE))
	$(BIN)/fedpeft figures experiments/paper/table1-cifar100.toml --out $(SMALL)/figures
	$(BIN)/fedpeft report $(GRIDS:%=$(SMALL)/%) --out $(SMALL)/report.html
	$(BIN)/fedpeft claims $(GRIDS:%=$(SMALL)/%)

PICTURES := runs/pictures
reproduce-pictures: setup  ## the claims about the domain gap with three seeds: half an hour on one core; resumable
	$(BIN)/fedpeft sweep experiments/gap/gap.toml --over seed=1,2,3 --out $(PICTURES)/gap
	$(BIN)/fedpeft claims $(PICTURES)/gap --gap experiments/results/gap-vit-glyphs-28.json

TEXT := table1 table3 table4
TREC :=
data/trec/test.jsonl:
	$(BIN)/python scripts/trec.py $(if $(TREC),--source $(TREC))

# TREC=FOLDER or TREC=FILE.jsonl reads the questions there; by default the hub is asked.
reproduce-text: setup data/trec/test.jsonl  ## the claims on question types, three seeds; resumable; an hour and a half on 1 core
	for table in $(TEXT); do \
	  $(BIN)/fedpeft sweep experiments/text/$$table.toml --over seed=1,2,3 \
	    --out runs/text/$$table || exit $$?; \
	done
	$(BIN)/fedpeft report $(TEXT:%=runs/text/%) --out runs/text/report.html
	$(BIN)/fedpeft claims $(TEXT:%=runs/text/%)

reproduce-paper: setup  ## the paper's own scale: needs a GPU and the hub; says the hours; resumable
	$(BIN)/python scripts/reproduce_paper.py

rehearse-paper: setup  ## one row of each kind of it with a tiny model on 2,000 drawn pictures, on a CPU
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/reproduce_paper.py --rehearse

FULL := HF_HUB_OFFLINE=1 $(BIN)/python scripts/reproduce_paper.py --out runs/paper-gpu
rehearse-paper-gpu: setup  ## a GPU, no network: Table 1 measured at full size, ten minutes of a rehearsal
	$(FULL) --hours --only table1-cifar100
	timeout --signal INT 600 $(FULL) --rehearse --full-size || test $$? -eq 124 -o $$? -eq 130

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: setup
	$(PYTEST) $(TWO)

test-slow: setup
	$(PYTEST) $(TWO) -m slow

test-deployment: setup  ## real Flower and Ray processes on this machine, one test at a time
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m deployment

test-deployment-short: setup  ## two of them: a simulation and a deployment equal the local engine
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m deployment -k equals_the_local_engine tests/engines/flower/test_deployment.py

coverage: setup  ## branches of src/ that the default tests take; fails under 92 %
	rm -f build/coverage*
	mkdir -p build
	COVERAGE_FILE=$(CURDIR)/build/coverage HF_HUB_OFFLINE=1 $(BIN)/python -m coverage run -m pytest $(TWO)
	COVERAGE_FILE=$(CURDIR)/build/coverage $(BIN)/python -m coverage combine --quiet
	COVERAGE_FILE=$(CURDIR)/build/coverage $(BIN)/python -m coverage report

mutants: setup  ## break the most important lines one at a time: the nearest tests must fail
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/mutants.py

docs: setup  ## reference pages from the code, then the site in build/site; a warning is an error
	$(BIN)/python scripts/write_reference.py
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees docs build/site

bench: setup  ## docs/lab/benchmarks.md: rows whose code changed; ROW=3: one row; FORCE=1: again
	$(BIN)/python -m bench $(ROW)

house:  ## rooms, lines of code and arrows between rooms
	@$(PYTHON) scripts/house.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
