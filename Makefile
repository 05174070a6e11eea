# What people and continuous integration both call. Everything happens in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# KServe's client asks the server in a test, with versions of its dependencies that are not ours; its models hold the manifests of deploy/.
KSERVE := $(VENV)/kserve
# Triton's server, for `make triton`; its Python backend needs a NumPy before 2.
TRITON := $(VENV)/triton

.PHONY: help venv kserve triton demo test lint proto bench container-check clean

help:
	@echo "make demo    set up, then train, export, serve and ask a small model: nothing is downloaded but packages"
	@echo "make test    set up, then run every test"
	@echo "make lint    ruff and mypy (strict)"
	@echo "make proto   regenerate service/pb from proto/"
	@echo "make triton  have Triton's own server serve exported files"
	@echo "make bench   run those scripts in benchmarks/ that need no data"
	@echo "make container-check   build the images with Debian's podman, run them, and look whether they hold what docs/containers.md says (root)"

venv: $(READY)

# tritonclient forbids the protobuf that our gRPC needs, and works with it: hence without its dependencies.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,otel,dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps tritonclient
	touch $(READY)

kserve: $(KSERVE)/.ready

$(KSERVE)/.ready: tests/deploy/requirements.txt | venv
	$(PYTHON) -m venv $(KSERVE)
	$(KSERVE)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(TRITON)/.ready: | venv
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet 'numpy<2' onnxruntime==1.23.2
	$(TRITON)/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
	touch $@

triton: $(TRITON)/.ready
	$(BIN)/python -m tests.helpers.deploy.real_triton

demo: venv
	$(BIN)/tlcli demo

# Tests that start servers, watch the clock or train with every core: one after the other. The others: two at a time, a core each.
ALONE := tests/service tests/deploy tests/ray tests/e2e/test_help.py tests/e2e/test_road.py tests/e2e/test_readme.py

test: venv kserve lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ALONE:%=--ignore=%) tests
	$(BIN)/python -m pytest $(ALONE)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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

# For quick turns: make container-check CHECK="--cpu --storage /var/tmp/tlcli-images". With the image for training: CHECK=--train.
container-check: venv
	$(BIN)/python deploy/check_container.py $(CHECK)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
