# Everything a user types. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
STAMP := $(VENV)/.stamp
BIN := $(VENV)/bin
# Programs that PATH may lack; PYTHON=... names another one.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo $$p && break; done)
EXPERIMENTS = $(patsubst experiments/%.yaml,%,$(wildcard experiments/*.yaml))
SWEEPS = $(patsubst experiments/sweeps/%.yaml,%,$(wildcard experiments/sweeps/*.yaml))
# What follows EXP= and its kin, as options of the handrec command.
CHOICES = $(if $(DATA),--dataset="$(DATA)") $(if $(CKPT),--ckpt_path="$(CKPT)")
# Without LOCAL a sweep is what its file says.
ONLY_LOCAL = SCALE, TRIALS, DATA and ARGS go with LOCAL=1; by W&B a sweep is as experiments/sweeps/$(SWEEP).yaml says: write them into its command and run_cap

.PHONY: help setup train profile eval predict export test lint bench results sweep clean need-exp need-run need-input need-sweep

help: ## list the targets
	@echo "usage: make TARGET [EXP=...] [DATA=synthetic] [SCALE=smoke|cpu|gpu|paper] [ARGS='--trainer.max_epochs=3 ...']"
	@echo
	@sed -nE 's/^([a-z]+):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  %-9s%s\n", $$1, $$2}'
	@echo
	@echo "experiments: $(if $(EXPERIMENTS),$(EXPERIMENTS),none)"

setup: $(STAMP) ## install everything into .venv (every other target does this on first use)
	@echo "$(VENV) is up to date"

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "handrec needs Python 3.11 or newer with its venv module: install it (Debian, Ubuntu: apt install python3.11-venv) or say PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON): once, some minutes"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(VENV) has a Python older than 3.11: remove it, or say PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

need-exp:
	@test -n "$(EXP)" || { echo "usage: make train EXP=<experiment> [DATA=...] [SCALE=smoke|cpu|gpu|paper] [CKPT=...] [ARGS=...]; there is $(if $(EXPERIMENTS),$(EXPERIMENTS),none)"; exit 2; }

need-run:
	@test -n "$(EXP)$(CKPT)" || { echo "usage: make eval EXP=<experiment or run directory> [CKPT=...] [DATA=...] [ARGS=...]; there is $(if $(EXPERIMENTS),$(EXPERIMENTS),none)"; exit 2; }

need-input:
	@test -n "$(INPUT)" || { echo "usage: make predict INPUT=<image, video or folder> [BOXES=file.json | DETECTOR=hand_landmarker.task] [CAMERA=K.json] [EXP=...] [CKPT=...] [OUT=predictions] [ARGS=...]"; exit 2; }

need-sweep:
	@test -f "experiments/sweeps/$(SWEEP).yaml" || { echo "usage: make sweep SWEEP=<file in experiments/sweeps, without .yaml> [LOCAL=1 [TRIALS=20] [SCALE=...] [DATA=...] [ARGS=...]]; there is $(SWEEPS)"; exit 2; }
	@$(if $(LOCAL)$(SCALE)$(TRIALS)$(DATA)$(ARGS),$(if $(LOCAL),true,echo "$(ONLY_LOCAL)"; exit 2),true)

train: need-exp $(STAMP) ## train an experiment: make train EXP=handmim [RESUME=1]
	@$(BIN)/handrec fit --exp="$(EXP)" $(if $(SCALE),--scale="$(SCALE)") $(CHOICES)$(if $(RESUME), --resume="$(RESUME)") $(ARGS)

profile: need-exp $(STAMP) ## trace a few steps: make profile EXP=handmim [SCALE=...]
	@WANDB_MODE=disabled KINETO_LOG_LEVEL=99 $(BIN)/handrec fit --exp="$(EXP)" $(if $(SCALE),--scale="$(SCALE)") $(CHOICES) --name="profile/$(EXP)" \
	  --trainer.callbacks+=handrec.callbacks.profile.Profile --trainer.max_epochs=-1 --trainer.max_steps=12 \
	  --trainer.limit_train_batches=1.0 --trainer.limit_val_batches=0 --trainer.enable_checkpointing=false $(ARGS)

eval: need-run $(STAMP) ## evaluate the latest run: make eval EXP=handmim [CKPT=...] [DATA=...]
	@$(BIN)/handrec test $(if $(EXP),--run="$(EXP)") $(CHOICES) $(ARGS)

predict: need-input $(STAMP) ## reconstruct photos or videos: make predict INPUT=photos/ [BOXES=file.json] [EXP=...]
	@$(BIN)/handrec predict $(if $(EXP),--run="$(EXP)") --input="$(INPUT)" $(if $(BOXES),--boxes="$(BOXES)") $(if $(DETECTOR),--detector="$(DETECTOR)") $(if $(CAMERA),--camera="$(CAMERA)") $(if $(OUT),--out="$(OUT)") $(CHOICES) $(ARGS)

export: $(STAMP) ## write a trained network as ONNX: make export [EXP=handmim] [CKPT=...]
	@$(BIN)/handrec export $(EXP) $(if $(CKPT),--ckpt="$(CKPT)") $(ARGS)

test: $(STAMP) ## run the tests, two at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(STAMP) ## check style, types and spelling
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell $(or $(shell git ls-files 2>/dev/null),src tests)

bench: ## measure: BENCH=name writes results/<name>/<MACHINE>.json; without a name, list them
ifdef BENCH
bench: $(STAMP)
	@test -e benchmarks/$(BENCH).py || { echo "no benchmarks/$(BENCH).py: make bench lists them"; exit 2; }
	@$(BIN)/python benchmarks/$(BENCH).py --out "results/$(BENCH)/$(or $(MACHINE),$(shell uname -m)).json" $(ARGS)
else
	@for file in benchmarks/[!_]*.py; do printf '  %-22s%s\n' "$$(basename $$file .py)" "$$(sed -n '1s/"""//gp' $$file)"; done
	@echo "make bench BENCH=name ARGS='...'"
endif

results: $(STAMP) ## write the tables and plots in docs/results/ from results/
	@$(BIN)/handrec results $(ARGS)

sweep: need-sweep $(STAMP) ## search options: make sweep SWEEP=handmim LOCAL=1 (no account), or by W&B without LOCAL
ifdef LOCAL
	@$(BIN)/handrec sweep $(if $(TRIALS),--trials="$(TRIALS)") "$(SWEEP)" -- $(if $(SCALE),--scale="$(SCALE)") $(if $(DATA),--dataset="$(DATA)") $(ARGS)
else
	@PATH="$(abspath $(BIN)):$$PATH" && agent=$$(wandb sweep --project handrec "experiments/sweeps/$(SWEEP).yaml" 2>&1 | tee /dev/stderr | sed -n 's/.*wandb agent //p') && wandb agent $$agent
endif

clean: ## remove caches and builds; runs, predictions and .venv stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	@find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
