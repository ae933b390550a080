# Everything is made from here, on a machine with Python 3.11 or newer, make and a package index.
PYTHON ?= python3
PROMPT ?= a red apple
BUDGET ?= 13
OUT ?= out
MARKED ?= not slow
# To compile all of PyTorch and transformers takes a minute: modules are compiled when they are imported, and those that
# a first image imports (FIRST) by the install.
PIP_FLAGS ?= -qq --disable-pip-version-check --no-compile
FIRST := diptych.cli.output, diptych.encoders.bert, diptych.models.cascade, diptych.models.latent_diffusion
VENV := .venv
BIN := $(VENV)/bin
# One thread: the tests' tensors are tiny, and a busy machine makes more threads wait for each other. So the cores take
# files of tests side by side.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
# Compiled modules are kept, whatever the environment says: each process would compile PyTorch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE
# As they were typed: make would take $H out of $HOME.
override PROMPT := $(value PROMPT)
override OUT := $(value OUT)
export PROMPT OUT PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo install test tests test-all lint format gpu gpu-check wheel default-model default-cascade default-4-steps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile
	@echo 'Variables: PROMPT="a red apple"  OUT=out  PYTHON=python3  BUDGET=13'

demo: $(VENV)/.installed ## install, then generate PROMPT with both default models into OUT
	$(BIN)/diptych demo "$$PROMPT" --count 2 --out "$$OUT"

install: $(VENV)/.installed-data ## install, with the packages for the emoji data, plots and pages

test: $(VENV)/.installed-dev ## install, then check style, types and the fast tests
	@$(MAKE) --jobs 2 lint tests

test-all: $(VENV)/.installed-dev ## as test, with the slow tests
	@$(MAKE) --jobs 2 lint tests MARKED=""

tests: $(VENV)/.installed-dev ## the fast tests alone
	$(PYTEST) -m "$(MARKED)"

lint: $(VENV)/.installed-dev ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev ## format the code, and update the tables of docs/house.md
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python docs/newcomer.py docs/house.md

wheel: $(VENV)/.installed ## build the wheel into dist/
	$(BIN)/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

# What was carried to a machine without an index lies in carry/: packages, unpacked, and the cache of the emoji sets.
gpu: ## run what needs a GPU, side by side, most important first, within BUDGET minutes, packed in PACK; a rerun resumes (no install: uses .venv or PYTHON)
	@run="$$([ -x $(BIN)/python ] && echo $(BIN)/python || echo "$$PYTHON")"; \
	if [ -d carry/cache ]; then export DIPTYCH_CACHE="$${DIPTYCH_CACHE:-carry/cache}"; fi; \
	PYTHONPATH="src:.:carry/site$${PYTHONPATH:+:$$PYTHONPATH}" "$$run" -m benchmarks.gpu --budget $(BUDGET) $(if $(PACK),--pack "$(PACK)")

gpu-check: $(VENV)/.installed-dev ## gather what travels to a lent GPU machine in build/loan; say how large it is, what is missing and what to type
	PYTHONPATH=src:. $(BIN)/python -m benchmarks.gpu_carry

default-model: $(VENV)/.installed-data ## make the data and train the models in src/diptych/assets (a GPU: minutes; a CPU: a day and more)
	$(BIN)/diptych data emoji --size 64 --scenes 5000 --out data/emoji-64
	$(BIN)/diptych data emoji --size 128 --scenes 5000 --out data/emoji-128
	$(BIN)/diptych train judge --run-dir runs/judge
	$(BIN)/diptych train emoji-autoencoder --run-dir runs/emoji-autoencoder
	$(BIN)/diptych precompute emoji-latent --out cache/emoji-latent
	$(BIN)/diptych train emoji-latent --run-dir runs/emoji-latent
	rm -rf src/diptych/assets/latent/unet src/diptych/assets/latent/autoencoder
	cp -r runs/emoji-latent/model/. src/diptych/assets/latent
	cp -r runs/judge/model/. src/diptych/assets/judge
	@echo "Bring MODEL_CARD.md in src/diptych/assets/latent and judge up to date."
	$(BIN)/diptych evaluate --data data/emoji-128 --out runs/emoji-latent/evaluation

default-cascade: $(VENV)/.installed-data ## as default-model, for the cascade in src/diptych/assets (hours on a CPU)
	$(BIN)/diptych data emoji --size 64 --scenes 5000 --out data/emoji-64
	$(BIN)/diptych data emoji --size 512 --scenes 1000 --out data/emoji-512
	$(BIN)/diptych train emoji-base --run-dir runs/emoji-base
	$(BIN)/diptych train emoji-sr-128 --run-dir runs/emoji-sr-128
	$(BIN)/diptych train emoji-sr-512 --run-dir runs/emoji-sr-512
	$(BIN)/diptych assemble runs/emoji-base runs/emoji-sr-128 runs/emoji-sr-512 --out src/diptych/assets/cascade
	@echo "Bring MODEL_CARD.md in src/diptych/assets/cascade up to date."
	$(BIN)/diptych evaluate --model cascade --stop 2 --data data/emoji-512 --out runs/emoji-cascade/evaluation

default-4-steps: $(VENV)/.installed-data ## as default-model, for the LoRA of 4 steps in src/diptych/assets (hours on a CPU)
	$(BIN)/diptych data emoji --size 128 --scenes 5000 --out data/emoji-128
	$(BIN)/diptych precompute emoji-4-steps --out cache/emoji-trajectories
	$(BIN)/diptych train emoji-4-steps --run-dir runs/emoji-4-steps
	cp -r runs/emoji-4-steps/model/. src/diptych/assets/latent-4-steps
	@echo "Bring MODEL_CARD.md in src/diptych/assets/latent-4-steps up to date."
	$(BIN)/python -m benchmarks.few_steps --images 600 --methods "full model, 24 steps" --student "4-step student=latent-4-steps" --out runs/emoji-4-steps/evaluation

clean: ## remove the environment and what was built
	rm -rf $(VENV) dist build out

# The environment: pinned versions, one stamp a set of extras. A stamp older than the pins installs again.

PINS := pyproject.toml constraints.txt

$(BIN)/python:
	@"$$PYTHON" -c 'pass' 2>/dev/null || { echo "diptych: cannot run $$PYTHON: install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; exit 2; }
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "diptych: $$PYTHON is $$("$$PYTHON" -V 2>&1), and 3.11 or newer is needed: name one, for example make PYTHON=python3.12" >&2; exit 2; }
	@"$$PYTHON" -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "diptych: $$PYTHON cannot make an environment: install its venv module (python3-venv on Debian)" >&2; exit 2; }

COMMA := ,
define install
	@echo "Installing diptych$(1) into $(VENV): PyTorch, transformers and what they need, gigabytes, minutes the first time"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable ".$(1)" \
	  $(if $(2),&& $(BIN)/python -m pip install $(PIP_FLAGS) --no-deps $(2)) || \
	  { echo "diptych: the install failed: see above, then run make again" >&2; exit 2; }
	@$(BIN)/python -c "import $(FIRST)"
	@touch $@
endef

$(VENV)/.installed: $(PINS) | $(BIN)/python
	$(call install,[cpu])

$(VENV)/.installed-data: $(PINS) | $(BIN)/python
	$(call install,[cpu$(COMMA)data$(COMMA)evaluate$(COMMA)serve])

# The references for LPIPS, FID and resizing go in without what they ask for: torchvision has no CPU build beside CPU torch.
REFERENCES := lpips==0.1.4 torch-fidelity==0.4.0 clean-fid==0.1.35

$(VENV)/.installed-dev: $(PINS) | $(BIN)/python
	$(call install,[dev],$(REFERENCES))
