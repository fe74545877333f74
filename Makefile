# Two commands do everything on a fresh machine with Python 3.11 to 3.13, make and git:
#   make demo   sets up, runs the suite `demo` end to end, prints the ablation table
#   make test   sets up, runs all tests
# `make reproduce` makes one published run anew and compares it bit by bit; RUN=SUITE/EXPERIMENT/seedK chooses another.
PYTHON ?= python3
export PYTHON
SUITE ?= demo
# The published run that takes least to make anew: the smallest network of the suites for 2 cores, about five minutes.
RUN ?= evidence-cpu/baseline/seed0
CORES ?= 2
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1
# The CUDA build of torch, for an older NVIDIA driver: TORCH_BACKEND=cu126 make setup. What was set up with is remembered.
remembered := $(shell cat .venv/.torch_backend 2>/dev/null)
TORCH_BACKEND ?= $(remembered)
export TORCH_BACKEND

.PHONY: setup demo reproduce test lint format lock data tables report ui why clean

setup: .venv/.ready

# uv itself comes from the same hashed lock.
.venv/.ready: requirements.lock pyproject.toml workflow/setup.sh
	bash workflow/setup.sh

ifneq ($(TORCH_BACKEND),$(remembered))
.venv/.ready: again
.PHONY: again
endif

demo: setup
	snakemake --cores $(CORES) --config suite=$(SUITE)
	@cat results/$(SUITE)/tables/ablation.md
	@echo
	@echo "tables    results/$(SUITE)/tables/"
	@echo "figures   results/$(SUITE)/figures/pictures/"
	@echo "report    results/$(SUITE)/report.html"
	@echo "runs      make ui     (mlflow ui --backend-store-uri sqlite:///mlflow.db)"

reproduce: setup
	tsd reproduce $(RUN)

test: setup
	python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder
	python -m pytest -m slurm

lint: setup
	ruff check .
	ruff format --check .
	mypy tsd
	snakefmt --check Snakefile workflow
	snakemake --lint --config suite=demo 2>&1 | python workflow/lint.py

format: setup
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

# Make the lock anew; it names no registry.
lock:
	uv pip compile --universal --generate-hashes --no-annotate --no-header --extra dev --python-version 3.11 \
	  pyproject.toml -o requirements.lock

data: setup
	snakemake --cores $(CORES) --config suite=$(SUITE) -- data

tables report: setup
	snakemake --cores $(CORES) --config suite=$(SUITE) -- $@

ui: setup
	@tsd mlflow init --suite $(SUITE)
	@uri=$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}; \
	case $$uri in http*) exit 0;; esac; \
	MLFLOW_BACKEND_STORE_URI=$$uri mlflow ui --host 127.0.0.1 --port $${PORT:-5000}

# Say what the next run would do, and why.
why: setup
	tsd explain --suite $(SUITE)
	snakemake -n --config suite=$(SUITE)

clean:
	rm -rf results reproduced mlruns mlflow.db logs .snakemake
