# Every target sets up what it needs; nothing but python3 (>= 3.11), venv and make is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Some machines forbid Python to keep what it compiles of a module: each of our processes would spend seconds on it again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-long long test-avx2 test-python processes check audit fuzz setup bench docs integration compose-test soak wheel clean
.DEFAULT_GOAL := demo

# By uv where there is one or pip can fetch it, else by pip. What the demo needs comes first: it is there in seconds.
$(VENV)/.installed-demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("pcct needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Call: make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else 0'
	@$(PYTHON) .ci/install.py $(VENV) demo
	@touch $@

$(VENV)/.installed: $(VENV)/.installed-demo
	@$(PYTHON) .ci/install.py $(VENV) dev
	@touch $@

setup: $(VENV)/.installed

demo: $(VENV)/.installed-demo
	@echo "starting the demo"
	@$(BIN)/python docs/demo/demo.py

# One process more than cores, for some wait. A file's tests stay in one process, which share what the file starts. JOBS=0 runs
# all in one, where a debugger works.
JOBS ?= $(shell expr $$(nproc) + 1)
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) $(PARALLEL)

# What needs minutes of load, a container engine, or both; what cannot run here says so.
test-long: long fuzz processes compose-test test-python

long: setup
	PCCT_SOAK_S=$${PCCT_SOAK_S:-180} $(PYTEST) -m long

# The suites that compute, once more as on a processor without AVX-512; says so, and runs nothing, where this is one.
test-avx2: setup
	$(BIN)/python tests/as_haswell.py $(PARALLEL) tests/core tests/client tests/worker

# The same suites with the newest Python and NumPy, in a container: says so, and is skipped, where no engine answers.
test-python:
	bash .ci/test_python

# Processes that are started one by one, with a store on a port, as operators do without containers.
processes: setup
	PCCT_TEST_TARGET=processes $(PYTEST) tests/integration

# The integration tests against `pcct up`, and against single processes.
integration: setup
	$(PYTEST) tests/integration
	$(MAKE) processes

# Kills and stops processes at random under load, for PCCT_SOAK_S seconds; PCCT_SOAK_SEED repeats a run.
soak: setup
	PCCT_SOAK_S=$${PCCT_SOAK_S:-180} $(PYTEST) -m long tests/integration/test_soak.py

# The compose file for real: says so, and is skipped, where no container engine answers.
compose-test: setup
	$(PYTEST) -m compose -vv -rs -s tests/deploy

# Example: make bench ARGS="--case knn-d3-32k". The rivals are installed on the first call only.
bench: $(VENV)/.installed-bench
	$(BIN)/python tests/bench/run.py $(ARGS)

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PYTHON) .ci/install.py $(VENV) bench
	@touch $@

# The site in build/site; a warning is an error. NO_MKDOCS_2_WARNING leaves out what Material says of other projects.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "to read it: $(BIN)/python -m http.server -b 127.0.0.1 -d build/site"

# The advisories and licences of all that is installed. Without a way to the index of advisories it says so and goes on.
audit: $(VENV)/.installed-audit
	@if $(BIN)/python -c "import urllib.request as u; u.urlopen('https://pypi.org/pypi/pip/json', timeout=10)" 2> /dev/null; \
	then $(BIN)/pip-audit --local --skip-editable --progress-spinner off; \
	else echo "pip-audit is skipped: https://pypi.org/pypi, the index of advisories, cannot be reached from here"; fi
	$(BIN)/pip-licenses --order=license --format=plain

$(VENV)/.installed-audit: $(VENV)/.installed
	@$(PYTHON) .ci/install.py $(VENV) audit
	@touch $@

# Ten thousand requests to `pcct up`, then the array decoders for as long; SECONDS=30 in CI.
SECONDS ?= 300
fuzz: setup
	$(BIN)/python tests/fuzz/ask.py --seconds $(SECONDS)
	@if $(BIN)/python -c 'import atheris' 2> /dev/null; then found=$$(mktemp -d); \
	$(BIN)/python tests/fuzz/decode.py -max_total_time=$(SECONDS) -max_len=4096 -artifact_prefix="$$found/" "$$found" tests/fuzz/corpus; \
	else echo "atheris is not installed, the decoders are not fuzzed: pip install -e '.[fuzz]'"; fi

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A wheel in dist/ with machine code for processors of this one's class: a first graph without a compiler.
wheel: setup
	$(BIN)/python -P -m pcct_core.prebuild
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) pcct_core/prebuilt demo-out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
