# make demo | test | test-long | lint | bench, from a fresh clone: each makes .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PS_PARALLEL := none
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# what people call or read first; the docstrings there are held to numpydoc
PUBLIC = $(wildcard lcls_dask/*.py lcls_dask/plot/*.py lcls_dask/access/*.py lcls_dask/stores/*.py lcls_dask/formats/*.py \
           lcls_dask/formats/remote/*.py lcls_dask/security/*.py lcls_dask/security/guard/*.py lcls_dask/cluster/*.py \
           lcls_dask/gateway/*.py lcls_dask/reduce/*.py lcls_dask/tof/*.py lcls_dask/sfx/*.py \
           lcls_dask/sfx/geometry/*.py lcls_dask/sfx/constants/*.py plugins/*.py) \
         lcls_dask/facility/simulation.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint bench clean

help:
	@echo "make demo       simulate two runs, serve and reduce them, try to break in: demo-out/index.html"
	@echo "make test       lint, types, docstrings and the tests"
	@echo "make test-long  the tests that take minutes"
	@echo "make lint       lint, types and docstrings alone"
	@echo "make bench      speed and memory against psana and a raw read"

$(VENV)/.installed: pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[plot,hdf5,sfx,test,lint]'
	touch $@

# What pip alone cannot bring is wanted, never required. A file records why one is absent, and is empty where it is
# there; each target that would use it says so loudly. $(call APT,COMMAND,PACKAGES): root fetches what COMMAND is in.
define APT
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v $(1) >/dev/null; then \
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2); } >$@.apt.log 2>&1 \
    || echo "WARNING: apt-get could not install $(2); see $@.apt.log" >&2; \
fi
endef

# loops that numba would compile at their first use, in every process that begins before another has done it
$(VENV)/.compiled: $(VENV)/.installed $(shell find lcls_dask -name '*.py' -path '*kernels*') lcls_dask/formats/xtc2/words.py
	@find lcls_dask -name '*.nb[ci]' -delete  # a loop that has another one within is kept by its own file's time alone
	$(BIN)/lcls-dask compile
	@touch $@

# the referee of the values: one of its dependencies has no wheel and compiles against Kerberos
$(VENV)/.psana: $(VENV)/.installed
	@$(call APT,krb5-config,libkrb5-dev gcc)
	@if $(BIN)/python -m pip install --quiet --editable '.[psana]' >$@.log 2>&1; \
	 then : >$@; \
	 else echo "psana could not be installed (see $@.log): values will NOT be checked against psana" >$@; \
	 fi

# the browser in which a test opens the notebook
$(VENV)/.chromium: $(VENV)/.installed
	@$(call APT,chromium,chromium)
	@if command -v chromium >/dev/null; \
	 then : >$@; \
	 else echo "there is no chromium (apt-get install chromium): JupyterLab is tested only where playwright has its own" >$@; \
	 fi

# the library that gives a process of the tests a wrong clock
$(VENV)/.faketime: $(VENV)/.installed
	@$(call APT,faketime,faketime libfaketime)
	@if ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || command -v faketime >/dev/null; \
	 then : >$@; \
	 else echo "there is no libfaketime (apt-get install faketime): wrong clocks are NOT tested" >$@; \
	 fi

# a zarr reader in another language
$(VENV)/.zarrita: $(VENV)/.installed
	@if npm install --silent --no-audit --no-fund --no-save --prefix $(VENV) zarrita >$@.log 2>&1; \
	 then : >$@; \
	 else echo "zarrita could not be installed (see $@.log; it takes npm): runs are NOT read with zarrita.js" >$@; \
	 fi

# the database that gateways may share, of which the tests start one of their own
$(VENV)/.postgresql: $(VENV)/.installed
	@$(call APT,pg_ctlcluster,postgresql)
	@if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; \
	 then : >$@; \
	 else echo "there is no PostgreSQL (apt-get install postgresql): gateways are tested with SQLite alone" >$@; \
	 fi

# the batch system whose jobs are workers in the tests; each test starts one of its own
$(VENV)/.slurm: $(VENV)/.installed
	@$(call APT,slurmctld,slurmctld slurmd slurm-client munge)
	@if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; \
	 then : >$@; \
	 else echo "there is no Slurm (apt-get install slurmctld slurmd slurm-client munge): clusters are tested without it" >$@; \
	 fi

# the library whose merging ours is compared with; it takes an older pandas, so it has an environment of its own
$(VENV)/.merging: $(VENV)/.installed
	@if { $(PYTHON) -m venv $(VENV)/referee && $(VENV)/referee/bin/python -m pip install --quiet reciprocalspaceship; } >$@.log 2>&1; \
	 then : >$@; \
	 else rm -rf $(VENV)/referee; \
	   echo "reciprocalspaceship could not be installed (see $@.log): merging is NOT compared with it" >$@; \
	 fi

# the program whose indexing ours is compared with
$(VENV)/.dials: $(VENV)/.installed
	@$(call APT,dials.index,--no-install-recommends dials)
	@if command -v dials.index >/dev/null; \
	 then : >$@; \
	 else echo "there is no DIALS (apt-get install dials): its adapter is NOT tested" >$@; \
	 fi

# says what is absent of a target's own prerequisites
define ABSENT
for record in $(filter-out $(VENV)/.installed $(VENV)/.compiled,$(filter $(VENV)/%,$^)); do \
  if [ -s $$record ]; then \
    echo "****************************************************************" >&2; \
    echo "WARNING: $$(cat $$record)." >&2; \
    echo "WARNING: rm $$record and make again to retry." >&2; \
    echo "****************************************************************" >&2; \
  fi; \
done
endef

demo: $(VENV)/.psana $(VENV)/.compiled
	@$(ABSENT)
	$(BIN)/lcls-dask demo --out demo-out

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/numpydoc lint $(PUBLIC)

test: $(VENV)/.psana $(VENV)/.chromium $(VENV)/.postgresql $(VENV)/.slurm $(VENV)/.faketime $(VENV)/.zarrita $(VENV)/.merging lint $(VENV)/.compiled
	@$(ABSENT)
	$(BIN)/python -m pytest -n 3 -m "not long"

test-long: $(VENV)/.psana $(VENV)/.postgresql $(VENV)/.slurm $(VENV)/.faketime $(VENV)/.dials
	@$(ABSENT)
	$(BIN)/python -m pytest -m long

bench: $(VENV)/.psana
	@$(ABSENT)
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
