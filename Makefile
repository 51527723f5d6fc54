# make serve    install what serving needs (no PyTorch) and start the service on port 8000
# make test     install everything and run the whole test suite
# make check    lint, formatting and types
# make clean    remove the virtual environment and the caches
#
# ARGS goes to the command: make serve ARGS="--port 9000", make test ARGS="-k batching".

VENV ?= .venv
# Any Python from 3.11 on; looked for only when the environment has to be made.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install -c constraints.txt

# The official builds of ONNX Runtime report their use to their maker unless told not to.
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: serve test check clean help
.DELETE_ON_ERROR:

serve: $(VENV)/.serving
	@exec $(VENV)/bin/fewshot serve $(ARGS)

test: $(VENV)/.testing
	$(VENV)/bin/python -m pytest $(ARGS)

check: $(VENV)/.testing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@sed -n 's/^# //p' Makefile | head -n 4

# The stamps are newer than these files where nothing has changed: then pip is not asked at all,
# and the service answers within a second or two.
$(VENV)/.serving: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what serving needs into $(VENV): about 300 MB to download, once."
	$(PIP) -e .
	@touch $@

$(VENV)/.testing: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing everything into $(VENV), PyTorch included: about 3 GB to download, once."
	$(PIP) -e '.[train,dev]'
	@touch $(VENV)/.serving $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "fewshot needs Python 3.11 or newer; name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
