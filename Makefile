# make demo | test | test-long | lint | bench, from a fresh clone: each makes .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PS_PARALLEL := none
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# what people call or read first; the docstrings there are held to numpydoc
PUBLIC = $(wildcard lcls_dask/*.py lcls_dask/access/*.py lcls_dask/stores/*.py lcls_dask/formats/*.py \
           plugins/*.py) lcls_dask/facility/simulation.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint bench clean

help:
	@echo "make demo       simulate two runs, reduce them on Dask, compare with the truth: demo-out/index.html"
	@echo "make test       lint, types, docstrings and the tests"
	@echo "make test-long  the tests that take minutes"
	@echo "make lint       lint, types and docstrings alone"
	@echo "make bench      speed and memory against psana and a raw read"

$(VENV)/.installed: pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[plot,hdf5,test,lint]'
	touch $@

# psana is the referee of the values. One of its dependencies has no wheel and compiles against Kerberos.
# It is never required: where it cannot be had, the file records why, and every target says so loudly.
$(VENV)/.psana: $(VENV)/.installed
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v krb5-config >/dev/null; then \
	   { apt-get update -qq && apt-get install -y -qq libkrb5-dev gcc; } >$(VENV)/apt.log 2>&1 \
	     || echo "WARNING: apt-get could not install libkrb5-dev; see $(VENV)/apt.log" >&2; \
	 fi
	@if $(BIN)/python -m pip install --quiet --editable '.[psana]' >$(VENV)/psana.log 2>&1; \
	 then : >$@; \
	 else echo "psana could not be installed; see $(VENV)/psana.log" >$@; \
	 fi

define REFEREE
if [ -s $(VENV)/.psana ]; then \
  echo "****************************************************************" >&2; \
  echo "WARNING: $$(cat $(VENV)/.psana)." >&2; \
  echo "WARNING: values will NOT be checked against psana." >&2; \
  echo "WARNING: rm $(VENV)/.psana and make again to retry." >&2; \
  echo "****************************************************************" >&2; \
fi
endef

demo: $(VENV)/.psana
	@$(REFEREE)
	$(BIN)/lcls-dask demo --out demo-out

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/numpydoc lint $(PUBLIC)

test: $(VENV)/.psana lint
	@$(REFEREE)
	$(BIN)/python -m pytest -n 2 -m "not long"

test-long: $(VENV)/.psana
	@$(REFEREE)
	$(BIN)/python -m pytest -m long

bench: $(VENV)/.psana
	@$(REFEREE)
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
