# ValueLocate notebook suite. `make` prints help.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PRESET ?= organism
MODEL ?=
SET ?=
RUN ?= $(PRESET)$(if $(MODEL),-$(notdir $(MODEL)))
PYTHON ?= python3

# An active conda environment made from environment.yml is used as it is; otherwise a .venv is built once.
ifeq ($(CONDA_DEFAULT_ENV),valuelocate)
  PY := python
  ENV :=
else
  PY := .venv/bin/python
  ENV := .venv/.ready
endif

DIR := runs/$(RUN)
OUT := $(DIR)/notebooks
U := valuelocate_utils
SETTINGS := PRESET=$(PRESET) MODEL=$(MODEL) SET=$(SET)
# Kept by make itself, so that a changed notebook or module re-runs its stage and those after it.
DATA := $(wildcard data/valueinsight/*.jsonl)
COMMON := $(U)/runs.py $(U)/schwartz.py $(U)/valueinsight.py $(U)/plotting.py $(U)/paper.mplstyle $(wildcard notebooks/params/$(PRESET).yaml) $(DATA)
# Products that the run's manifest lists and that are gone, a damaged one deleted on advice for instance: their stage runs again.
GONE := $(if $(wildcard $(DIR)/manifest.json),$(shell cd '$(DIR)' && grep -oE '"(answers|shards|figures)/[^"]+"|"[a-z_]+\.parquet"' manifest.json | tr -d '"' | sort -u | while read -r f; do [ -e "$$f" ] || echo "$$f"; done))
again = $(if $(filter $(1),$(GONE)),FORCE)
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
# glibc otherwise returns a batch's tensors to the system and faults them in again at the next: a fifth of the time of 04.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

.PHONY: help setup run same-settings test figures lab report check organism trials grow bench refresh clean FORCE

help: ## Print this help
	@echo "ValueLocate notebook suite"; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo; echo "  Settings: PRESET=$(PRESET) RUN=$(RUN) MODEL=<folder or hub name> SET='gammas=[1,2] generated=20'"

setup: $(ENV) ## Build the environment alone (.venv, pinned by constraints.txt)

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"error: Python {sys.version.split()[0]} is too old, 3.11 or newer is needed: make PYTHON=python3.11")'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

run: same-settings $(OUT)/05_figures.ipynb ## Run notebooks 01-05 into runs/$RUN; goes on where it stopped
	@echo "$(DIR): figures/headline.csv and figures/*.pdf are ready (make report RUN=$(RUN) for one page)"

same-settings:
	@if [ -f $(DIR)/.settings ] && [ "$$(cat $(DIR)/.settings)" != "$(SETTINGS)" ]; then \
	  echo "error: run '$(RUN)' was made with $$(cat $(DIR)/.settings), not $(SETTINGS): choose another RUN=, or delete $(DIR)" >&2; exit 1; fi

define execute
@echo "$(notdir $@)"
@$(PY) -m $(U) execute notebooks/$(notdir $@) --preset '$(PRESET)' --run '$(RUN)' --model '$(MODEL)' --set '$(SET)'
endef

$(OUT)/01_dataset.ipynb: notebooks/01_dataset.ipynb $(COMMON) | same-settings $(ENV)
	$(execute)
	@echo "$(SETTINGS)" > $(DIR)/.settings

$(OUT)/02_activations.ipynb: $(OUT)/01_dataset.ipynb notebooks/02_activations.ipynb $(call again,answers/% shards/%) $(U)/models.py $(U)/activations.py | $(ENV)
	$(execute)

$(OUT)/03_neurons.ipynb: $(OUT)/02_activations.ipynb notebooks/03_neurons.ipynb $(call again,scores.parquet neurons.parquet) $(U)/localization.py $(U)/significance.py | $(ENV)
	$(execute)

$(OUT)/04_interventions.ipynb: $(OUT)/03_neurons.ipynb notebooks/04_interventions.ipynb $(call again,tuning.parquet effects.parquet edited_answers.parquet) $(U)/interventions.py $(U)/outcomes.py $(U)/experiments.py | $(ENV)
	$(execute)

$(OUT)/05_figures.ipynb: $(OUT)/04_interventions.ipynb notebooks/05_figures.ipynb $(call again,figures/%) | $(ENV)
	$(execute)

test: $(ENV) ## Unit tests, notebook policy, and every notebook at the smoke preset
	$(PY) -m pytest tests
	@rm -rf runs/.nbval
	VALUELOCATE_RUNS=$(CURDIR)/runs/.nbval VALUELOCATE_HEADLESS=1 $(PY) -m pytest --nbval-lax --nbval-cell-timeout=600 -p no:cacheprovider \
	  $(sort $(wildcard notebooks/*.ipynb)) $(sort $(wildcard notebooks/solutions/*.ipynb))

figures: $(ENV) run ## Redraw the figures of a run and copy them to figures/
	@mkdir -p figures && cp $(DIR)/figures/* figures/

lab: $(ENV) ## Open JupyterLab on the notebooks
	$(PY) -m jupyter lab --notebook-dir=notebooks

report: $(ENV) ## Join the executed notebooks of a run into runs/$RUN/report.html
	@$(PY) -m $(U) report --run '$(RUN)'

check: $(ENV) ## Print a run's headline table; fail if its main result does not hold
	@$(PY) -m $(U) check --run '$(RUN)'

organism: $(ENV) ## Train the embedded model again, by its recipe, into data/organism
	$(PY) -m $(U) organism

trials: $(ENV) ## Repeat the search over recipes that chose the embedded model (hours)
	$(PY) -m $(U) organism --trials

grow: $(ENV) ## Ask an OpenAI-compatible endpoint for more of a cell: VALUE=tradition CELL=work N=10 LLM=<model>
	@$(PY) -m $(U) grow --value '$(VALUE)' --cell '$(CELL)' --n '$(or $(N),10)' --llm '$(LLM)' --into '$(INTO)' --timeout '$(or $(TIMEOUT),60)'

bench: $(ENV) ## Speed and memory, as ratios measured side by side
	$(PY) benchmarks/collection.py

refresh: $(ENV) ## Re-run the committed notebooks (smoke preset) and clean their outputs
	$(PY) -m $(U) refresh

clean: ## Remove the environment and caches; runs/ is kept
	rm -rf .venv build *.egg-info .pytest_cache runs/.nbval
