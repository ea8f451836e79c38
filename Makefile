# The README's commands. Each sets up what it needs in .venv on a fresh machine (Python >= 3.11 and make).
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test check schema prove fuzz historical mutants bench gpu gpu-packages format model clean

# torch comes first and by its exact version: an open range would bring several GB of CUDA along on a machine without a GPU.
.setup-stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

setup: .setup-stamp

demo: .setup-stamp
	$(BIN)/quiesce demo

test: .setup-stamp
	$(BIN)/pytest

check: .setup-stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_tidy.py

# schemathesis sends whatever the OpenAPI document allows, and what it does not; in an environment of its own, for it is a pytest plugin.
schema: .setup-stamp
	test -x build/schema/bin/schemathesis || $(PYTHON) -m venv build/schema
	build/schema/bin/python -m pip install -q --disable-pip-version-check "schemathesis>=4.32,<5"
	$(BIN)/python -m tests.engine.server.schema build/schema/bin/schemathesis $(or $(EXAMPLES),25)

format: .setup-stamp
	$(BIN)/python -m quiesce.statemachine.readme README.md
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Retrains the shipped model (about half an hour on one quiet core).
model: .setup-stamp
	$(BIN)/python -m quiesce.engine.tiny.train --out engine/tiny/checkpoint

# The figures of this machine, peers interleaved in the same run; JSON under build/bench/.
bench: .setup-stamp
	$(BIN)/quiesce bench --suite

# Exhausts the declaration's state space: quick with one request (seconds), full with two (minutes, 1.5 GB).
prove: .setup-stamp
	$(BIN)/quiesce prove --profile $(or $(PROFILE),quick)

# Hunts in the real engine: quick (a minute), deep (20 minutes), soak (HOURS=N). Failures and coverage under build/fuzz/.
fuzz: .setup-stamp
	$(BIN)/quiesce fuzz --profile $(or $(PROFILE),quick) --hours $(or $(HOURS),1) --device $(or $(DEVICE),ledger)

# Puts real bugs of other engines back into ours, hunts each from ten seeds what is not hunted yet, and writes tests/historical/TABLE.md
# (ten minutes from nothing). ARGS=--again hunts anew; ARGS=--examples asks the example tests instead (half an hour).
historical: .setup-stamp
	$(BIN)/python -m tests.historical.table $(ARGS)

# Breaks the lifecycle code in 445 small ways and says who notices: tests/mutation/RESULTS.md (half an hour).
mutants: .setup-stamp
	$(BIN)/python -m tests.mutation.campaign

# What the engine reaches on this machine's GPU, in ten minutes at most, with the packages that PYTHON has: nothing is fetched or
# installed. JSON in build/bench/gpu.json, the table last. DRY=1: every block at toy size on the CPU.
ifdef DRY
gpu: .setup-stamp
	$(BIN)/python -m quiesce.engine.bench.gpu --dry
else
gpu:
	PYTHONPATH=.src:build/packages$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m quiesce.engine.bench.gpu
endif

# The pure Python that a GPU machine without a network may lack, to be taken there with the checkout: `make gpu` looks into this folder.
gpu-packages: .setup-stamp
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target build/packages -c constraints.txt transitions six

clean:
	rm -rf .venv .setup-stamp build
