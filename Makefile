# make demo   sets up and runs the whole path on bundled photos
# make test   sets up and runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,openvino,trt-rtx,dev,ibot,video,qat

# Tests start many processes: with this set, each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.installed  ## Photos in, verified dense ONNX and a latency out (2 to 5 minutes)
	$(BIN)/hgkd-edge demo

# glibc keeps freed memory: getting it from the kernel again takes up to a fifth of a test's time.
test: export MALLOC_MMAP_THRESHOLD_ = 1073741824
test: export MALLOC_TRIM_THRESHOLD_ = 4294967296
test: export MALLOC_TOP_PAD_ = 67108864
# The bench tests mostly wait; CI runs lint at the same time.
test: $(VENV)/.compiled  ## Run the tests
	$(BIN)/python -m pytest tests/bench -q -n 4 --durations 10
	$(BIN)/python -m pytest tests -q -n auto --dist loadfile --no-loadscope-reorder --ignore tests/bench --durations 40

lint: $(VENV)/.installed  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## Format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed  ## Build the documentation site into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

clean:  ## Remove the environment and caches (runs stay)
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# uv installs in half of pip's time; pip installs where uv cannot. uv does not read pip's
# configuration.
$(VENV)/.installed: pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python -e '.[$(EXTRAS)]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[$(EXTRAS)]' || \
	  $(BIN)/python -m pip install --quiet --no-compile -e '.[$(EXTRAS)]'; \
	fi
	@touch $@

# The import compiles what is used: a sixth of all modules. Otherwise all tests that start together
# would compile it.
$(VENV)/.compiled: $(VENV)/.installed
	@$(BIN)/python -c "import hgkd_edge.distillation.distill, hgkd_edge.finetune, hgkd_edge.export"
	@touch $@
