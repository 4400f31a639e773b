# Two commands do everything on a fresh machine: `make esd` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: esd test lint types pytest train-digits notebooks reports bench clean
# The digits and the tests are small: a second thread gains nothing, and on a busy machine it waits
# for the first at every turn. The tests share the cores as processes instead.
esd pytest train-digits notebooks reports: export OMP_NUM_THREADS ?= 1

esd: $(VENV)/.installed
	$(BIN)/python -m spectra.esd checkpoints/digits-lt-ce-drw-sgd.pt --overall --per-class

test: $(VENV)/.tested lint types pytest

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tested
	$(BIN)/mypy

pytest: $(VENV)/.tested
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spectra needs Python 3.11 or newer; name one with `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# Remake the committed checkpoints; on one thread two reruns agree bit for bit.
train-digits: $(VENV)/.installed
	$(BIN)/python -m spectra.train digits-lt-ce-drw-sgd --overwrite
	cp runs/digits-lt-ce-drw-sgd/0/last.pt checkpoints/digits-lt-ce-drw-sgd.pt
	$(BIN)/python -m spectra.train digits-lt-ce-drw-sam --overwrite
	cp runs/digits-lt-ce-drw-sam/0/last.pt checkpoints/digits-lt-ce-drw-sam.pt

$(VENV)/.notebooks: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebooks]'
	touch $@

notebooks: $(VENV)/.notebooks
	$(BIN)/jupyter lab notebooks

# Without a browser: the pages go to reports/html, the figures to reports/figures.
reports: $(VENV)/.notebooks
	$(BIN)/jupyter nbconvert --execute --to html --output-dir reports/html notebooks/*.ipynb

# The peers pin old packages, which nothing that is compared needs.
$(VENV)/.peers: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/peers \
		pyhessian==0.1 hessian-eigenthings==1.0.0a5
	touch $@

bench: export PYTHONPATH := $(VENV)/peers
bench: $(VENV)/.tested
	$(MAKE) $(VENV)/.peers || echo "without the peers that cannot be had, which the files name"
	for file in $(filter-out %/plots.py %/common.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$file || exit 1; done
	$(BIN)/python benchmarks/plots.py

clean:
	rm -rf $(VENV) build *.egg-info
