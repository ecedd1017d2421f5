# make demo    set everything up, convert a real image, read one file out of it
# make test    set everything up, then ruff, mypy and all tests
# make bench   set everything up, then the benchmark against other tools
# make proto   generate the code for containerd's API again
# make clean   remove what these made

PYTHON ?= python3
VENV := .venv

.PHONY: demo test lint bench proto clean

demo: $(VENV)/.ready
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh examples/demo.sh

test: $(VENV)/.ready-dev
	@sh tests/install-tools.sh
	@$(MAKE) --no-print-directory lint
	$(VENV)/bin/pytest

lint: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.ready-dev
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(VENV)/bin/python -m tests.bench.bench

# The generated code is checked in. An old compiler serves, because its code runs with newer packages too.
proto:
	"$(PYTHON)" -m venv .proto-venv
	.proto-venv/bin/pip install --quiet --disable-pip-version-check 'grpcio-tools==1.72.2'
	.proto-venv/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		soci_cli/targets/containerd/api/*.proto
	rm -rf .proto-venv

clean:
	rm -rf $(VENV) .demo .bench build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.ready: pyproject.toml tests/make-venv.sh
	@sh tests/make-venv.sh $(VENV) "$(PYTHON)" .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml tests/make-venv.sh
	@sh tests/make-venv.sh $(VENV) "$(PYTHON)" '.[dev]'
	@touch $@ $(VENV)/.ready
