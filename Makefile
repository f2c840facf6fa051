# make demo   venv, install, the main job on a small task, a picture at the end
# make test   venv, install, all tests (make test-quick leaves the slow ones out)
# make check  format, lint and types
PYTHON ?= python3
VENV ?= .venv
# A pinned torch, installed first: a bare range would pull whatever CUDA build is newest.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# Tests side by side, one thread each: two OpenMP teams on the same cores wait for each other.
JOBS ?= auto
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist worksteal

.PHONY: demo test test-quick check format clean

$(BIN)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

$(BIN)/.installed: $(BIN)/.torch pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[robotics]"
	touch $@

$(BIN)/.dev: $(BIN)/.installed
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[robotics,wandb,tensorboard,dev]"
	touch $@

demo: $(BIN)/.installed
	$(BIN)/o2o-smooth demo

test: $(BIN)/.dev
	$(PYTEST)

test-quick: $(BIN)/.dev
	$(PYTEST) -m "not slow"

check: $(BIN)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(BIN)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
