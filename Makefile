# make run    sets everything up and runs the main job on the bundled workload
# make test   sets everything up and runs every check and test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test check compile format docs bench validate validate-papers validate-schedules verify-vllm clean

run: $(READY)
	$(BIN)/plimsoll plan --model meta-llama/Llama-3.1-8B --trace examples/workloads/chat.csv \
		--budget-usd-per-hour 20 --ttft-ms 1000 --tpot-ms 50

test: $(READY) check compile
	$(BIN)/python -m pytest -n 2
	PLIMSOLL_COMPILED=off $(BIN)/python -m pytest -m interpreted

# The engine as C extensions beside its source, where there is a C compiler (docs/architecture.md); else it is interpreted
compile: $(READY)
	$(BIN)/python hatch_build.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python -m plimsoll.metrics.document > docs/metrics.md
	$(BIN)/python scripts/generate_cli_docs.py

bench: $(READY) compile
	$(BIN)/python benchmarks/engine_speed.py
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/metrics_speed.py
	$(BIN)/python benchmarks/plan_search.py
	$(BIN)/python benchmarks/prefix_cache.py

# Heavier verification: every suite of validation/, into docs/validation.md and docs/validation.json
validate: $(READY)
	$(BIN)/python -m validation._report --data $(DATA)

validate-papers: $(READY)
	$(BIN)/python -m validation papers $(addprefix --data ,$(wildcard $(DATA)))

# Where the measured data lies: PLIMSOLL_DATA, else ../shared/data
DATA := $(or $(PLIMSOLL_DATA),../shared/data)

validate-schedules: $(READY)
	$(BIN)/python -m validation schedules --data $(DATA)/vllm-schedules/*.jsonl.gz

# A real vLLM on this machine's CPU against Plimsoll (docs/profiling.md): about 21 minutes; goes on where it stopped
verify-vllm: $(READY)
	$(BIN)/python -m scripts.verify_vllm

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Plimsoll needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,silicon,offload]'
	$(BIN)/plimsoll --version
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache src/plimsoll/_compiled.json
	find src -name '*.so' -delete
