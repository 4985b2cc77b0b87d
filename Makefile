# What one does with this repository, each as one command. `make` alone lists them.

STUDY ?= config.yaml
CORES ?=
UPGRADE ?=

# The first Python that is new enough; another one with `make run PYTHON=/path/to/python`.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.14,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))

# An environment that is active around make, a Python path or a pip habit must not leak into .venv.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_NO_DEPS
export PYTHONNOUSERSITE := 1
export PYTHONDONTWRITEBYTECODE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
IN_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv"

# .venv is believed when it holds a stamp with the checksum of this lock in this folder, and its Python still starts:
# file times would not notice a folder that was moved, nor a Python that was removed. The environment for
# development holds everything that the one for running holds, in the same versions, so it serves for both.
checksum = $(shell { pwd -P; cat $(1); } | cksum | cut -d ' ' -f 1)
RUN_STAMP := .venv/.requirements.lock-$(call checksum,requirements.lock)
DEV_STAMP := .venv/.requirements-dev.lock-$(call checksum,requirements-dev.lock)
PACKAGE_STAMP := .venv/.package-$(call checksum,pyproject.toml)
ifneq ($(filter test test-servers servers docs lint format lock,$(MAKECMDGOALS)),)
LOCK := requirements-dev.lock
STAMP := $(DEV_STAMP)
else
LOCK := requirements.lock
STAMP := $(firstword $(wildcard $(DEV_STAMP)) $(RUN_STAMP))
endif
ifneq ($(shell .venv/bin/python -c 'print("starts")' 2>/dev/null),starts)
.PHONY: $(STAMP)
endif

# The tests that speak to real serving engines; each is skipped where its engine was not made.
REAL_SERVER_TESTS := tests/test_real_servers.py tests/test_real_studies.py

.PHONY: help run test servers test-servers docs lint format lock clean

help: ## list these commands
	@echo 'usage: make COMMAND'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

run: $(PACKAGE_STAMP) ## measure and report; the study is STUDY=config.yaml, CORES=2 uses fewer cores than there are
	@echo "Running the study in $(STUDY)"
	@$(IN_VENV) vlmeter run "$(STUDY)" $(if $(CORES),-- --cores $(CORES))

test: lint ## everything that has to hold: lint, types, unit, workflow and end-to-end tests
	@echo 'Running the tests'
	@$(IN_VENV) OMP_NUM_THREADS=1 pytest -n 2 --dist loadgroup --durations=10

servers: $(PACKAGE_STAMP) ## make the real serving engines of the tests, once: vLLM, transformers serve (5 GB), llama.cpp (from source)
	@.venv/bin/python tools/servers.py vllm
	@.venv/bin/python tools/servers.py transformers
	@.venv/bin/python tools/servers.py llama.cpp

test-servers: servers ## run the tests with real serving engines alone
	@$(IN_VENV) OMP_NUM_THREADS=1 pytest --durations=10 $(REAL_SERVER_TESTS)

docs: $(PACKAGE_STAMP) ## build the documentation into site/, strictly: a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet --strict
	@echo 'Documentation: site/index.html'

lint: $(PACKAGE_STAMP) ## style, formatting, the workflow's own lint, types; changes nothing
	.venv/bin/ruff check --quiet
	.venv/bin/ruff format --quiet --check
	.venv/bin/snakefmt --check Snakefile rules
	.venv/bin/snakemake --quiet --lint --configfile config.yaml
	.venv/bin/mypy --no-error-summary

format: $(STAMP) ## bring the code into shape
	.venv/bin/ruff check --quiet --fix
	.venv/bin/ruff format --quiet
	.venv/bin/snakefmt Snakefile rules

lock: $(STAMP) ## resolve pyproject.toml into the locks and envs/; UPGRADE=1 takes the newest versions
	.venv/bin/python tools/pins.py lock $(if $(UPGRADE),--upgrade)

clean: ## remove .venv and caches; results stay
	rm -rf .venv .cache .hypothesis build site vlmeter.egg-info
	find vlmeter scripts tools tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamp is the last thing written, so an install that failed or was interrupted is never believed.
$(STAMP):
	@set -eu; python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo 'vlmeter needs Python 3.11 or newer and finds none; name one: make PYTHON=/path/to/python3' >&2; exit 2; fi; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "vlmeter needs Python 3.11 or newer, which $$python is not; name one: make PYTHON=/path/to/python3" >&2; exit 2; fi; \
	if [ -e "$(RUN_STAMP)" ] && .venv/bin/python -c ''; then \
		echo 'Adding what $(LOCK) has to .venv'; \
	else \
		echo "Making .venv from $(LOCK) with $$("$$python" --version); the first time this takes a few minutes"; \
		"$$python" -m venv --clear .venv; \
	fi; \
	rm -f .venv/.requirements*; \
	.venv/bin/python -m pip install -qq --requirement $(LOCK); \
	touch $@

$(PACKAGE_STAMP): $(STAMP)
	@rm -f .venv/.package-*
	@.venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@
