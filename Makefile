# `make demo` runs the main job on this machine, `make test` the tests. Both set up what they need
# first, and only once. Messages go to stderr; stdout is for results.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A Python 3.11 is what constraints.txt was tested with; a newer one may do.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP_FLAGS := -qq --disable-pip-version-check

INSTALLED := .venv/.installed
MODEL := build/model
DOCSTRINGS := data/docstrings/.made
SMART_HOME := data/smart_home/.made

.PHONY: help setup demo smart-home model-path test soak check bench clean

help:  ## Lists the targets.
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 14

setup: $(INSTALLED) $(MODEL) $(DOCSTRINGS)  ## The environment with the hpo command, the small model and data.

demo: setup  ## The main job: 8 trials on a real model and real text, under 5 minutes on two cores.
	@$(BIN)/hpo delete quickstart --storage sqlite:///hpo.db --yes --missing-ok >&2
	@$(BIN)/hpo run search_spaces/quickstart.yaml --trials 8
	@echo "To have hpo in this shell: . .venv/bin/activate" >&2

smart-home: setup $(SMART_HOME)  ## The second example: spoken commands to JSON, then tuned beside untuned.
	@$(BIN)/hpo delete smart-home --storage sqlite:///hpo.db --yes --missing-ok >&2
	@$(BIN)/hpo run search_spaces/smart_home.yaml
	@TQDM_DISABLE=1 $(BIN)/python -m hpo.demo compare smart-home

model-path: $(MODEL)  ## Prints the folder of the small model; use it as `make -s model-path`.
	@readlink $(MODEL)

# Two processes, because many tests wait for others. A file's tests stay together: they share what is
# expensive. (Groups would be finer, but pytest-xdist 3.8 overlooks their names under pytest 9.2.)
test: setup $(SMART_HOME)  ## Runs the tests; ARGS="-k name" goes to pytest, -n0 for one process.
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

soak: setup  ## Kills at every named point, then at random for SOAK_MINUTES (20); ends with what was lost.
	@$(BIN)/python -m tests.soak --matrix $(ARGS)

check: $(INSTALLED)  ## Lint, format, types, import rules.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file benchmarks/peers/mypy.ini benchmarks/peers/*.py
	@$(BIN)/lint-imports

bench: setup  ## All benchmarks against the peers, hours; ARGS="search equal --only hpo" for a part.
	@$(if $(ARGS),set -- $(ARGS); room=$$1; shift; $(BIN)/python -m benchmarks.$$room "$$@",\
	  $(BIN)/python -m benchmarks.step && for room in packing driver search; do \
	  $(BIN)/python -m benchmarks.$$room all || exit 1; done)
	@$(BIN)/python -m benchmarks

clean:  ## Removes what setup made here; the model in the cache, studies and runs stay.
	rm -rf .venv build data

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hpo needs Python 3.11 or newer; name one, as in: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv (some minutes, once)" >&2
	@$(PYTHON) -m venv .venv >&2
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev,demo]' >&2
	@touch $@

# A link, so that a search space can name the model on every machine.
$(MODEL): | $(INSTALLED)
	@mkdir -p $(@D)
	@folder="$$(TQDM_DISABLE=1 $(BIN)/python -m hpo.demo model)" && ln -sfn "$$folder" $@

$(DOCSTRINGS): hpo/demo/docstrings.py | $(INSTALLED)
	@echo "Writing data/docstrings" >&2
	@$(BIN)/python -m hpo.demo docstrings --out data >&2
	@touch $@

$(SMART_HOME): hpo/demo/smart_home.py | $(INSTALLED)
	@echo "Writing data/smart_home" >&2
	@$(BIN)/python -m hpo.demo smart-home --out data >&2
	@touch $@
