# Every chore is one target here, the same for people and for CI. Plain `make` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The interpreter that builds the environment, 3.11 or newer.
PYTHON ?= python3
export PYTHON

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
VLLM := .venv-vllm
RAY := .venv-ray
SGLANG := .venv-sglang
DEMO := out/demo
DEMO_POLICIES := 'lrpt,mwkr+cap=tuned,spt,random,sampled:mwkr@64,pilot,bundle:$(DEMO)/bundle,learned,learned+lookahead,cp-sat@2d+hint:lrpt,rolling@0.2d,clairvoyant@3d'
BENCH_ARGS ?=
# Where `make e2e-kubernetes` keeps what it builds, and its options (E2E_ARGS=--help).
KUBERNETES ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dispatchgym/kubernetes-1.20
E2E_ARGS ?=
# What `make bench-gpu` runs, with which python: GPU names the machine in profiles, and GPU=cpu is a laptop without one.
# GPU_TRAFFIC is trace:requests, GPU_RANKED the requests on which ten schedulers are ranked.
GPU_PYTHON ?= $(BIN)/python
GPU ?= h200
GPU_OUT ?= out/gpu
ifeq ($(GPU),cpu)
MODELS ?= tiny
GPU_ENGINE ?= --max-len 4096 --max-seqs 64 --token-budget 4096 --kv-blocks 8192
GPU_TRAFFIC ?= azure-2023-conv-twin:40
GPU_RANKED ?= 15
else
MODELS ?= 8b 1b
GPU_ENGINE ?= --max-len 16384
GPU_TRAFFIC ?= azure-2023-conv:300 sharegpt-300:200 azure-2023-code:120 mooncake-conversation:60
GPU_RANKED ?= 250
endif
LIVE_ARGS ?=
SCHEDULERS_10 := vllm,sarathi,orca,sglang,srtf,mlfq,least-slack,flow-prefill,laps,mc-sf
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 4

.PHONY: help setup demo test test-ray test-vllm test-sglang test-gpu vllm-traces lint format types tests bench bench-gpu \
	bench-peers gpu-speed gpu-calibration gpu-fidelity gpu-ranking gpu-contests gpu-live e2e-kubernetes soak-llm docs \
	wheel-check constraints clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(READY) ## create .venv with every pinned version and install dispatchgym into it (skipped while up to date)

# A build leaves dispatchgym.egg-info here, which would hide what is installed (entry points) when it grows old.
$(READY): pyproject.toml constraints.txt
	@rm -rf dispatchgym.egg-info
	@.ci/environment $(VENV) constraints.txt --no-build-isolation -e '.[dev,docs,onnx]'
	@echo "Compiling the LLM engine for this machine: about a minute"
	@$(BIN)/dispatchgym serve llm --compile

demo: setup ## train a small policy, judge it beside shipped bundles, rules and CP-SAT, say where the reports lie
	@rm -rf $(DEMO)/run
	@$(BIN)/dispatchgym train configs/jobshop/demo.yaml --out $(DEMO)/run
	@$(BIN)/dispatchgym export $(DEMO)/run --out $(DEMO)/bundle --no-onnx
	@$(BIN)/dispatchgym evaluate demo --out $(DEMO) --fresh --policies $(DEMO_POLICIES)

test: lint types tests ## set up, then lint, types and tests

test-vllm: $(VLLM)/.ready ## hold our vllm policy and the vLLM plug-in against vLLM 0.25.1's own scheduler, in .venv-vllm
	@$(VLLM)/bin/python -m pytest -p no:cacheprovider -o filterwarnings=default tests/conformance/vllm $(PYTEST_ARGS)

vllm-traces: $(VLLM)/.ready ## write down anew what vLLM's scheduler does, for the default tests
	@VLLM_LOGGING_LEVEL=CRITICAL HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m tests.conformance.vllm.record

# The wheel without its dependencies: kernels and CUDA libraries, which its scheduler does not need.
$(VLLM)/.ready: tests/conformance/vllm/requirements.txt
	@.ci/environment $(VLLM) $< -r $<
	@$(VLLM)/bin/python -m pip install --quiet --no-deps vllm==0.25.1 xgrammar==0.2.1 -e . || { rm $@; exit 1; }

test-sglang: $(SGLANG)/.ready ## the plug-in's hooks on SGLang 0.5.23's own queue policy, in .venv-sglang
	@PYTHONPATH=. $(SGLANG)/bin/python -m pytest -p no:cacheprovider -o filterwarnings=default -o addopts=--import-mode=importlib tests/conformance/sglang $(PYTEST_ARGS) --numprocesses 0

$(SGLANG)/.ready: tests/conformance/sglang/requirements.txt
	@.ci/environment $(SGLANG) $< -r $<
	@$(SGLANG)/bin/python -m pip install --quiet --no-deps sglang==0.5.23 || { rm $@; exit 1; }

test-ray: $(RAY)/.ready ## the request router and replicas of the LLM server in a local Ray Serve, in .venv-ray
	@PYTHONPATH=. RAY_AUTH_MODE=disabled $(RAY)/bin/python -m pytest -p no:cacheprovider -o filterwarnings=default -o addopts=--import-mode=importlib tests/conformance/ray $(PYTEST_ARGS) --numprocesses 0

$(RAY)/.ready: tests/conformance/ray/requirements.txt
	@.ci/environment $(RAY) $< -r $< 'ray[serve]'

lint: setup ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup ## mypy --strict over the package and benchmarks/
	@$(BIN)/mypy

tests: setup ## pytest without the slow tests (PYTEST_ARGS=... to choose)
	@$(BIN)/pytest $(PYTEST_ARGS)

test-gpu: ## the tests that need a GPU, with the python that sees it (GPU_PYTHON=...): kernels, captured steps, whole texts
	@$(GPU_PYTHON) -m pytest -m gpu -p no:cacheprovider tests/serving/executor/gpu $(PYTEST_ARGS)

bench-gpu: gpu-speed gpu-calibration gpu-fidelity gpu-ranking gpu-contests gpu-live ## every table of docs/results.md that needs a GPU, into out/gpu (GPU=cpu: a tiny model on a laptop)

gpu-speed: ## the executor beside its bounds and noted peers
	@for model in $(MODELS); do $(GPU_PYTHON) benchmarks/executor.py --models $$model --seconds 5 --json $(GPU_OUT)/executor-$$model.json; done

gpu-calibration: $(MODELS:%=$(GPU_OUT)/torch-$(GPU)-%.json) ## measured profiles, with their residuals

$(GPU_OUT)/torch-$(GPU)-%.json:
	@mkdir -p $(GPU_OUT)
	@$(GPU_PYTHON) -m dispatchgym calibrate --model random:$* --name torch-$(GPU)-$* $(GPU_ENGINE) --out $@ --steps $(@:.json=.jsonl)

gpu-fidelity: gpu-calibration ## the same traffic on the model and on its profile
	@for model in $(MODELS); do for traffic in $(GPU_TRAFFIC); do \
		$(GPU_PYTHON) -m dispatchgym fidelity --model random:$$model --profile $(GPU_OUT)/torch-$(GPU)-$$model.json $(GPU_ENGINE) \
			--trace $${traffic%:*} --requests $${traffic#*:} --loads 0.5 1.0 --json $(GPU_OUT)/fidelity-$$model-$${traffic%:*}.json; done; done

gpu-ranking: gpu-calibration ## ten schedulers by goodput, on the model and on its profile
	@model=$(lastword $(MODELS)); $(GPU_PYTHON) -m dispatchgym fidelity --model random:$$model --profile $(GPU_OUT)/torch-$(GPU)-$$model.json \
		$(GPU_ENGINE) --trace $(firstword $(subst :, ,$(GPU_TRAFFIC))) --requests $(GPU_RANKED) --loads 2.0 --kv-blocks 4000 --ttft-slo 0.5 --tpot-slo 0.03 \
		--schedulers $(SCHEDULERS_10) --json $(GPU_OUT)/ranking-$$model.json

gpu-contests: gpu-calibration ## the papers' contests on the model and on its profile
	@model=$(firstword $(MODELS)); $(GPU_PYTHON) benchmarks/simulator_vs_gpu.py --model random:$$model \
		--profile $(GPU_OUT)/torch-$(GPU)-$$model.json --json $(GPU_OUT)/contests-$$model.json

gpu-live: gpu-calibration ## the bundle and rules in a live server (LIVE_ARGS='--slices code-11,flow-18-b --rounds 1' for a part)
	@model=$(firstword $(MODELS)); $(GPU_PYTHON) benchmarks/live_schedulers.py --model random:$$model \
		--profile $(GPU_OUT)/torch-$(GPU)-$$model.json --json $(GPU_OUT)/live-$$model.json $(LIVE_ARGS)

bench: setup bench-peers ## run every script in benchmarks/ beside its peers (BENCH_ARGS=--quick: half a minute each)
	@for script in benchmarks/*.py; do echo "== $$script $(BENCH_ARGS)"; $(BIN)/python "$$script" $(BENCH_ARGS); done

bench-peers: $(PEERS)/.ready ## create .venv-peers with the packages that benchmarks compare with

$(PEERS)/.ready: benchmarks/peers/requirements.txt
	@.ci/environment $(PEERS) $< -r $<

e2e-kubernetes: setup ## run rules and a shipped bundle against a real control plane (builds Kubernetes 1.20 once)
	@tests/e2e/kubernetes/build "$(KUBERNETES)"
	@$(BIN)/python -m tests.e2e.kubernetes.run --binaries "$(KUBERNETES)/bin" $(E2E_ARGS)

soak-llm: setup ## half an hour of traffic through the LLM server: memory flat, no block lost (DISPATCHGYM_SOAK_S)
	@$(BIN)/pytest -s -p no:logging -m slow tests/serving/llm/test_soak.py

docs: setup ## build the documentation into site/
	@$(BIN)/mkdocs build --strict 2>&1 | sed '/^INFO/d'
	@echo "Documentation: site/index.html"

wheel-check: setup ## build sdist and wheel, install the wheel in a fresh environment elsewhere, use it from there
	@.ci/wheel-check

constraints: ## write constraints.txt anew: the newest versions that pyproject.toml allows, with torch 2.13.0
	@.ci/constraints $(PYTHON)

clean: ## remove build products and caches (keeps .venv, out/ and runs/)
	@rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find envs solvers agents serving dashboards configs dispatchgym tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
