# `make demo` and `make test` need Python 3.11 or newer and the package index, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-ray lint format docs wheel clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## create .venv and install FlexGen with its development tools

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "FlexGen needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	@touch $@

demo: install  ## the whole idea on real digits, a GAN's and a VAE's: before, after, control, report
	$(BIN)/flexgen train experiment=demo
	$(BIN)/flexgen train experiment=demo_vae

test: install  ## the test suite without its slow tests
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: install  ## the whole test suite, with more fuzz cases
	FLEXGEN_FUZZ=150 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --durations=40

test-ray: .venv-ray/.installed  ## a sweep on a local Ray cluster, in an environment of its own
	.venv-ray/bin/pytest tests/integration/test_ray.py

.venv-ray/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/pip install --quiet --disable-pip-version-check -e ".[ray]" pytest pytest-timeout
	@touch $@

lint: install  ## formatting, lint, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## build the documentation into site/, without the network; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "documentation: site/index.html"

wheel: install  ## build the wheel, install it beside the same packages, run a command outside
	rm -rf dist build/wheel-env
	$(BIN)/python -m build --wheel --outdir dist .
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/pip install --quiet --disable-pip-version-check --no-deps dist/flexgen-*.whl
	@# The packages of $(VENV), which are those of constraints.txt; its own copy of FlexGen is not seen.
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(build/wheel-env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
	cd / && $(CURDIR)/build/wheel-env/bin/python -c 'import flexgen; assert "wheel-env" in flexgen.__file__'
	cd / && $(CURDIR)/build/wheel-env/bin/flexgen train data=ring8 latent_dim=2 steps=20 threads=1 \
		paths.run_dir=$(CURDIR)/build/wheel-run/$$(date +%s%N) trainer=cpu

clean:  ## remove what was built, not the runs
	rm -rf $(VENV) .venv-ray dist build site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
