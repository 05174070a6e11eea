# What people and continuous integration both call. Everything happens in .venv, except the demo, which needs less.
ifndef PYTHON
# The first Python from 3.11 to 3.14 that runs: a name on the path may be a shim of pyenv for a version that is not active.
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python $(HOME)/.pyenv/versions/3.1[1234].*/bin/python; do \
	"$$python" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' > /dev/null 2>&1 && echo "$$python" && break; done)
endif
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The demo's environment: .venv where it is there already, else one without the developers' tools.
DEMO := $(if $(wildcard $(READY)),$(VENV),.venv-demo)
# A test uses KServe's client, which needs other versions of its dependencies, and its models to validate the manifests of deploy/.
KSERVE := $(VENV)/kserve
# Triton's server, for `make triton`; its Python backend needs a NumPy before 2.
TRITON := $(VENV)/triton
# The runtime of browsers, for tests in Node; they say so when they skip without it.
WEB := $(VENV)/web
# LiteRT and its converter, for `make litert`; they need other versions of NumPy, onnx and protobuf.
LITERT := $(VENV)/litert

.PHONY: help python venv kserve web triton litert demo check test lint docs proto bench container-check clean

help:
	@echo "make demo    set up, then train, export, serve and query a small model: nothing is downloaded but packages"
	@echo "make check   lint, check types, run the tests nearest to the code: at most three minutes"
	@echo "make test    set up, lint, check types, run every test: at most twenty minutes on two cores"
	@echo "make lint    ruff and mypy (strict)"
	@echo "make python  print the Python that the environments are made with"
	@echo "make docs    build the documentation site into site/"
	@echo "make proto   regenerate service/pb from proto/"
	@echo "make triton  have Triton's own server serve exported files"
	@echo "make web     install onnxruntime-web for the tests of plain files, where npm is installed"
	@echo "make litert  convert plain files with onnx2tf, and compare LiteRT's outputs"
	@echo "make bench   run those scripts in benchmarks/ that need no data"
	@echo "make container-check   build the images with Debian's podman, run them, and check their contents against docs/containers.md (root)"
	@echo "make clean   remove the environments and caches"

python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.14 found on the path or below ~/.pyenv/versions: install one, or name it with make PYTHON=/path/to/python" >&2; exit 1; }
	@$(if $(filter python,$(MAKECMDGOALS)),echo "$(PYTHON)",:)

venv: $(READY)

# tritonclient forbids the protobuf that gRPC needs, and works with it: install it without its dependencies.
$(READY): pyproject.toml constraints.txt | python
	@test -x $(BIN)/python || echo "installing the developers' environment in $(VENV): about 8 GB, 3 to 10 minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,otel,dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps tritonclient
	touch $(READY)

# What training needs, with the ONNX Runtime that knows no GPU.
.venv-demo/.ready: pyproject.toml constraints.txt deploy/requirements.py | python
	@echo "installing the demo's environment in .venv-demo: about 5.5 GB, most of it PyTorch with CUDA, 2 to 10 minutes"
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python deploy/requirements.py --cpu train > .venv-demo/requirements.txt
	.venv-demo/bin/python -m pip install --quiet --constraint constraints.txt --requirement .venv-demo/requirements.txt
	.venv-demo/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

kserve: $(KSERVE)/.ready

$(KSERVE)/.ready: tests/deploy/requirements.txt | venv
	$(PYTHON) -m venv $(KSERVE)
	$(KSERVE)/bin/python -m pip install --quiet --requirement $<
	touch $@

web: $(WEB)/.ready

$(WEB)/.ready: | venv
	@if command -v npm > /dev/null; then \
		npm install --silent --no-audit --no-fund --ignore-scripts --fetch-retries 5 --prefix $(WEB) onnxruntime-web@1.30.0 && touch $@ \
			|| echo "npm could not install onnxruntime-web: tests in it will skip"; \
	else echo "npm is not installed: tests in onnxruntime-web will skip"; fi

litert: $(LITERT)/.ready
	$(BIN)/python -m tests.helpers.deploy.real_litert

$(LITERT)/.ready: tests/helpers/deploy/litert_requirements.txt | venv
	$(PYTHON) -m venv $(LITERT)
	$(LITERT)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(TRITON)/.ready: | venv
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet 'numpy<2' onnxruntime==1.23.2
	$(TRITON)/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
	touch $@

triton: $(TRITON)/.ready
	$(BIN)/python -m tests.helpers.deploy.real_triton

demo: $(DEMO)/.ready
	$(DEMO)/bin/tlcli demo

# The tests nearest to the code: no server process, no training to the end.
NEAR := tests/test_layering.py tests/test_proto.py tests/contract tests/evaluation tests/exports/rewrite tests/service/protocol tests/service/settings \
	tests/service/security tests/training/metrics tests/training/settings tests/cli/test_wrong_invocations.py tests/packaging/test_makefile.py

check: venv lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not alone" $(NEAR)

# Two tests at a time, a core each; then, one after the other, those that watch the clock or take every core. Both parts run even when the first fails.
test: venv kserve web lint
	status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not alone" tests || status=$$?; \
	$(BIN)/python -m pytest -m alone tests || status=$$?; \
	exit $$status

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The variable silences a notice about a later MkDocs, which is not installed.
docs: venv
	$(BIN)/python docs/generate_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

PROTO_OUT ?= .
proto: venv
	$(BIN)/python -m grpc_tools.protoc -Itlcli/service/pb=proto \
		-I$$($(BIN)/python -c 'import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parents[1])') \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=$(PROTO_OUT) --pyi_out=$(PROTO_OUT) --grpc_python_out=$(PROTO_OUT) --mypy_grpc_out=$(PROTO_OUT) \
		tlcli/service/pb/tlcli/v1/classifier.proto
	mkdir -p $(PROTO_OUT)/tlcli/service/pb/inference
	$(BIN)/python -m grpc_tools.protoc -Iproto --pyi_out=$(PROTO_OUT)/tlcli/service/pb \
		--descriptor_set_out=$(PROTO_OUT)/tlcli/service/pb/inference/open_inference.binpb inference/open_inference.proto

FIGURES := waiting map_cost against_pytorch_grad_cam pointing_game networks

bench: venv
	for script in $(FIGURES); do $(BIN)/python benchmarks/$$script.py || exit 1; done

# For quick iterations: make container-check CHECK="--cpu --storage /var/tmp/tlcli-images". With the image for training: CHECK=--train.
container-check: venv
	$(BIN)/python deploy/check_container.py $(CHECK)

clean:
	rm -rf $(VENV) .venv-demo site docs/reference .mypy_cache .ruff_cache .pytest_cache *.egg-info
