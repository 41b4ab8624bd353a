# Two commands do everything on a machine with Python 3.11+ and make:
#   make demo     set up, then the whole journey on the bundled English corpus (LANGUAGE=zh: Chinese)
#   make test     set up, then all tests and the short fault tier
# TORCH_INDEX=https://... takes torch from another package index; see docs/installation.md for the CPU-only one.

PYTHON ?= python3
VENV ?= .venv
LANGUAGE ?= en
DATA ?=
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet
TORCH_ARGS = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: demo test check format docs fault clean

# --- set-up: torch first and pinned, so that no other package pulls a build with CUDA -----------------------------

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("seedbed needs Python 3.11 or newer; set PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) torch==2.13.0
	touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.check: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[check]'
	touch $@

# --- use ----------------------------------------------------------------------------------------------------------

demo: $(VENV)/.core
	$(BIN)/seedbed demo --lang $(LANGUAGE)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist loadfile $(if $(DATA),--data=$(DATA))
	$(BIN)/python -m pytest tests -m fault $(if $(DATA),--data=$(DATA))

# --- develop ------------------------------------------------------------------------------------------------------

check: $(VENV)/.check
	$(BIN)/ruff format --check src tests benchmarks examples tools
	$(BIN)/ruff check src tests benchmarks examples tools
	$(BIN)/mypy
	$(BIN)/python tools/check_docs.py
	$(BIN)/zensical build --clean --strict

format: $(VENV)/.check
	$(BIN)/ruff format src tests benchmarks examples tools
	$(BIN)/ruff check --fix src tests benchmarks examples tools

docs: $(VENV)/.check
	$(BIN)/zensical serve

clean:
	rm -rf $(VENV) site dist runs/demo-en runs/demo-zh
