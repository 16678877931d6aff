# Two commands do all the set-up: `make demo` trains and evaluates, `make test` tests.
# `make figures` runs the demo, draws its terminal and writes its figures into README.md and the recipe head.
# `make policies`, after it, trains on rewards with three seeds (an hour on an idle core) and writes the figures of docs/rl.md.
.PHONY: setup demo figures policies test test-slow coverage lint format golden docs lock bench clean
# Where Python may not keep bytecode, each process compiles all that it imports: 23 s of a core for torch and friends, not 11.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else 'Python 3.11 or 3.12 is needed, not %d.%d; name one: make PYTHON=python3.12 ...' % sys.version_info[:2])"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python -m framework recipe=demo

figures: setup
	rm -rf outputs/figures && mkdir -p outputs
	script -qec "stty cols 100; $(BIN)/python -m framework recipe=demo paths.runs=outputs/figures" outputs/demo.ansi
	$(BIN)/python -m tools.docs.terminal outputs/demo.ansi docs/pictures/demo.svg --title "make demo" --width 100
	$(BIN)/python -m tools.docs.figures outputs/figures/demo

policies: setup
	for part in hard none; do $(BIN)/python -m framework recipe=rl_dapo scale=tiny stage/prompt_weights=$$part run.name=$$part \
		paths.runs=outputs/figures -m run.seed=0,1,2 || exit 1; done
	$(BIN)/python -m tools.docs.policies outputs/figures/hard/* --unweighted outputs/figures/none/*

test: setup
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow

coverage: setup
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: setup
	$(BIN)/python -m tools.golden

docs: setup
	$(BIN)/python -m tools.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: setup
	$(BIN)/uv pip compile --quiet --generate-hashes --override tools/lock_overrides.txt --no-header --no-annotate --no-emit-index-url --extra dev --extra docs --python-version 3.11 --upgrade pyproject.toml -o requirements.lock

bench: setup
	$(BIN)/python -m tools.bench.overhead

clean:
	rm -rf $(VENV) outputs site docs/reference
