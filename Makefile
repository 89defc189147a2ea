# Everything a newcomer needs: `make compare` and `make test`. Each makes .venv first, if it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= results/phantom
PIP    := $(BIN)/python -m pip --disable-pip-version-check

NNUNET := .venv-nnunet

# The reference, and losses of four families; the weight of the boundary term is warmed up (`--schedule ramp`).
FAMILIES := dice+binary_cross_entropy,dice,binary_cross_entropy,focal_tversky,exponential_logarithmic,dice+binary_cross_entropy+0.01*boundary

.PHONY: setup compare compare-all test test-all test-nnunet lint unit bench architecture docs notebooks clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medloss needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (some 1.5 GB, more where torch brings CUDA; a few minutes)"
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

compare: setup
	$(BIN)/medloss compare phantom --losses '$(FAMILIES)' --schedule ramp --folds 0,1,2 --epochs 20 --batch-size 2 \
		--val-interval 5 --out $(OUT)

# Every loss, on one fold: some ten minutes.
compare-all: setup
	$(BIN)/medloss compare phantom --losses all --epochs 20 --batch-size 2 --val-interval 5 --out $(OUT)_all

# Lint, types, and the tests that decide. They run against the built wheel, from outside the checkout.
test: lint
	.ci/wheel-test -m "not slow"

# All tests: also long trainings, Triton's interpreter over the whole contract, many examples of each property, and what
# needs Chromium, PostgreSQL, SLURM (skipped, with the reason, where they are not installed) or nnU-Net; the documentation
# site; and two empty environments, into which pip installs the lower bounds and the newest packages.
test-all: lint $(VENV)/.docs
	@echo "make test-all: about an hour on two quiet cores, and some 10 minutes more where nnU-Net's environment is not installed; some 1 GB of packages is downloaded"
	MEDLOSS_TEST_EVERYTHING=1 .ci/wheel-test --durations 10
	$(MAKE) test-nnunet

# nnU-Net's packages need a torch and a torchvision that fit each other, and so an environment of their own.
test-nnunet: $(NNUNET)/.installed
	$(NNUNET)/bin/python -m pytest -p no:xdist --durations 10 -q tests/pipelines/nnunet/installed

$(NNUNET)/.installed: pyproject.toml constraints-nnunet.txt
	$(PYTHON) -m venv $(NNUNET)
	@echo "Installing nnU-Net, and torch with CUDA, into $(NNUNET) (some 7 GB, a few minutes)"
	$(NNUNET)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints-nnunet.txt \
		--editable '.[nnunet,fast]' torchvision pytest hypothesis
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests of `make test` in the checkout, for those who work on it.
unit: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m "not slow"

# The losses' table takes some twenty minutes; `python -m benchmarks.losses --full`, with all sizes, some three hours.
bench: setup
	$(BIN)/python -m benchmarks.losses --quick
	$(BIN)/python -m benchmarks.engine_overhead
	$(BIN)/python -m benchmarks.distance_maps
	$(BIN)/python -m benchmarks.report_predictions

# The picture in docs/architecture.md, from the imports in the code.
architecture: setup
	$(BIN)/python -m benchmarks.architecture

# The documentation site, from the pages in docs/: built without the internet, and refused if a link is dead.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

# The tutorials, run again: their outputs are kept in them.
notebooks: $(VENV)/.docs
	$(BIN)/python docs/_site/notebooks.py

$(VENV)/.docs: $(VENV)/.installed
	@echo "Installing what builds the documentation into $(VENV) (some 100 MB)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(NNUNET) .venv-wheel build dist site .cache .pytest_cache .mypy_cache .ruff_cache
