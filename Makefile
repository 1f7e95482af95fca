# The stages that .ci/run calls; each works by itself in a checkout that is set up as CONTRIBUTING.md says.
BIN ?= .venv/bin
RUNS := $(shell mktemp -u -d)

.PHONY: check lint types tests mainjob slow benchmarks

check: lint types tests mainjob

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types:
	$(BIN)/mypy

tests:
	$(BIN)/pytest

mainjob:
	$(BIN)/flowgrad train mnist --train-size 6400 --test-size 1000 --epochs 1 --out $(RUNS)/mnist
	$(BIN)/dask flowgrad train digits --hidden 16 --epochs 1 --grain shard --no-dashboard --out $(RUNS)/digits
	test -s $(RUNS)/mnist/model.safetensors -a -s $(RUNS)/mnist/report.html -a -s $(RUNS)/digits/history.csv
	rm -rf $(RUNS)

slow:
	$(BIN)/pytest -m slow

benchmarks:
	$(BIN)/python -m benchmarks
