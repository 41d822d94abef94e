# make install, run, test, lint, bench: no Docker needed.
PYTHON ?= python3.11
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install run test test-all lint bench bench-full bench-hold performance benchmark-model examples images lock clean

help: ## Show these words
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## Make .venv with pinned, hashed packages and compile the kernels

.venv/installed: requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m spearhead warm
	touch $@

run: install ## Run the pipeline on ./var, dashboard on port 8000, until Ctrl-C
	$(BIN)/python -m spearhead up

test: install ## Test everything that needs no containers, browser or Prometheus; some six minutes
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not soak and not docker and not browser and not tools"

test-all: test ## Test everything: also with containers, a browser, Prometheus, and for minutes on end
	$(BIN)/python -m pytest -m "soak or docker or browser or tools"

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install ## Measure throughput and latency beside the in-memory floor; one JSON object on standard output
	@$(BIN)/python -m spearhead bench --json

bench-full: install ## Measure growth curves (a quarter of an hour), write them and the pages made of them
	$(BIN)/python -m bench.full

bench-hold: install ## Hold the peak for ten minutes and say what grows; JSON on standard output
	@$(BIN)/python -m bench.hold

performance: install ## Make docs/PERFORMANCE.md and the model in docs/SCALING.md of the figures that are there
	$(BIN)/python -m bench.full --render

benchmark-model: install ## Lay the model beside the published figures of the Fraud Detection Handbook
	@$(BIN)/python -m bench.model

examples: install ## Take the examples of docs/API_PAYLOADS.md and of OpenAPI from a real run (five minutes)
	$(BIN)/python -m bench.examples

images: ## Build the five images and print their sizes (needs Docker)
	docker compose build --quiet
	$(PYTHON) deploy/image_sizes.py

lock: install ## Pin the newest packages that requirements/*.in allow
	cd requirements && touch core.txt && for name in core tables model model-gpu plots web run dev; do \
		../$(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --constraint core.txt \
		--output-file $$name.txt $$name.in || exit 1; done

clean: ## Remove what tools left behind; volumes and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis artifacts build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
