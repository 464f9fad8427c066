# The two commands of the README are `make demo` and `make test`. Each builds its own .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test quick lint docs crash faults model soak nightly fuzz bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/.installed ## Simulate a microscope, process its micrographs as they come, show the result
	$(BIN)/streamprep demo

test: .venv/.installed-dev .venv/axe/.installed lint docs ## All checks: lint, types, import rules, the links of the documentation, the whole test suite
	$(BIN)/python -m pytest -n 4 --dist worksteal

quick: .venv/.installed-dev .venv/axe/.installed ## The tests without the slow ones
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not slow"

lint: .venv/.installed-dev ## Lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.installed-docs ## The documentation site, in site/: open site/index.html; dead links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

CRASH_JOBS ?= $(shell nproc)
crash: .venv/.installed-dev ## Kill the daemon at random, at every system call and in its recovery; cut the power 200 times (as root)
	STREAMPREP_KILLS=200 STREAMPREP_KILL_EVERY=1 STREAMPREP_KILL_SHARDS=64 STREAMPREP_POWER_LOSSES=200 \
	STREAMPREP_POWER_SHARDS=10 $(BIN)/python -m pytest tests/test_crash.py tests/reliability/test_kill_points.py \
	  tests/reliability/test_power_loss.py -n $(CRASH_JOBS) --dist worksteal --timeout 7200 -rA

faults: .venv/.installed-dev ## Every test of the thirty cases in docs/guarantees.md, the long ones, too (all of them: as root, with fiu-utils)
	STREAMPREP_FAULTS=1 $(BIN)/python -m pytest -m case -n 2 --dist worksteal --timeout 1800

MICROGRAPHS ?= 100000
soak: .venv/.installed-dev ## A session of 100,000 micrographs with kills and clock jumps; prints and plots what grows (an hour or two)
	$(BIN)/python -m tests.reliability.soak --micrographs $(MICROGRAPHS) --json soak.json --plot soak.svg

nightly: export STREAMPREP_RANDOM = 1
nightly: ## The long tests, in forms that take an hour or so together, and the whole suite with other random examples
	$(MAKE) test
	$(MAKE) faults
	$(MAKE) model MODEL_EXAMPLES=200
	$(MAKE) soak MICROGRAPHS=15000
	$(MAKE) fuzz

MODEL_EXAMPLES ?= 1000
model: .venv/.installed-dev ## Try MODEL_EXAMPLES sessions of rewrites, faults, full disks and power losses in memory
	STREAMPREP_MODEL_EXAMPLES=$(MODEL_EXAMPLES) $(BIN)/python -m pytest tests/reliability/test_model.py

bench: .venv/.installed-dev ## Time whole sessions, next to RELION, and the operations from file to file, next to Xmipp 3
	$(BIN)/python bench/end_to_end.py
	$(BIN)/python bench/operations.py
	$(BIN)/python bench/maps.py

FUZZ_SECONDS ?= 300
fuzz: .venv/.installed-dev ## Fuzz the readers of files, all targets together for FUZZ_SECONDS (needs atheris: Linux on x86_64)
	@targets="$$($(BIN)/python -m tests.fuzz)" && each=$$(( $(FUZZ_SECONDS) / $$(echo $$targets | wc -w) + 1 )) && \
	for target in $$targets; do \
	  echo "$$target: $$each s"; \
	  $(BIN)/python -m tests.fuzz $$target -max_total_time=$$each -timeout=20 -verbosity=0 || exit 1; \
	done

clean: ## Remove what the other targets made
	rm -rf .venv demo build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Made last, so that an environment whose making was interrupted is made again.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.installed: pyproject.toml .venv/.made
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml .venv/.made
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@ .venv/.installed .venv/.installed-docs

.venv/.installed-docs: pyproject.toml .venv/.made
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@ .venv/.installed

# axe-core judges whether the dashboard can be used without eyes or a mouse; where it cannot be had that test is skipped.
.venv/axe/.installed: .venv/.made
	@mkdir -p .venv/axe
	@npm install --prefix .venv/axe --no-audit --no-fund --silent --fetch-retries=1 --fetch-timeout=20000 axe-core@4 >/dev/null 2>&1 \
	  || echo "axe-core could not be installed: the test that needs it will be skipped"
	@touch $@
