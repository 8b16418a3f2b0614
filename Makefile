# make train      train on simulated images; on real ones: make train ARGS="recipes/resnet18.yaml --dataset FOLDER"
# make test       lint, type check and fast tests, in minutes
# make test-all   lint, type check and all tests
# make soak       fault injection for an hour: kills, interruptions, hostile files (docs/reliability.md)
# make bench      speed benchmarks, an hour or more; RUN is the model (docs/benchmarks.md)
# The first call sets up .venv.

PYTHON ?= python3
ARGS ?= --overwrite_output_dir
# The model that is benchmarked.
RUN ?= runs/quickstart
# One process, without the launcher's warnings about defaults. For several GPUs see docs/distributed.md.
LAUNCH ?= --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: train lint test test-all soak bench clean

train: .venv/installed
	.venv/bin/accelerate launch $(LAUNCH) train.py $(ARGS)

# Two workers with one thread each. The tests of a file run in one worker, since they share trained models.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/mypy

test: lint
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: lint
	$(PYTEST) $(PYTEST_ARGS)

soak: .venv/installed-test
	.venv/bin/python -m soak.training_kills --kills 200 --stock
	.venv/bin/python -m soak.cache_kills --kills 50
	.venv/bin/python -m soak.hostile_files --files 10000

bench: .venv/installed-test
	@test -f $(RUN)/config.json || { echo "RUN: expected a run folder, got $(RUN). Run make train first, or set RUN=FOLDER" >&2; exit 2; }
	.venv/bin/python benchmarks/train_step.py
	.venv/bin/python benchmarks/epoch.py
	.venv/bin/python benchmarks/predict.py $(RUN)
	.venv/bin/python benchmarks/startup.py $(RUN)
	.venv/bin/python benchmarks/scaling.py
	.venv/bin/python benchmarks/time_to_auc.py

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "PYTHON: expected Python >= 3.10, got $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-test: .venv/installed pyproject.toml
	.venv/bin/python -m pip install --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf .venv *.egg-info
