# make demo    set everything up, convert a real image, read one file out of it
# make check   set everything up, then ruff, mypy and the tests that are quick
# make test    the same with all tests and the tools that they use: what continuous integration runs
# make lowest  tests with the oldest release of each dependency that is allowed
# make soak    random cases and kills by the thousand, which take an hour and more
# make bench   set everything up, then the benchmark against other tools
# make proto   generate the code for containerd's API again
# make clean   remove what these made

PYTHON ?= python3
VENV := .venv
# Tests and the programs that they start are compiled once.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(VENV)/bin/pytest -n auto --dist worksteal

.PHONY: demo check test lowest soak lint bench proto clean

demo: $(VENV)/.ready
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh examples/demo.sh

check: $(VENV)/.ready-dev
	@$(MAKE) --no-print-directory lint
	SOCI_TESTS_SCALE=0.1 $(PYTEST) -m 'not slow'

test: $(VENV)/.ready-dev
	@sh tests/install-tools.sh
	@$(MAKE) --no-print-directory lint
	$(PYTEST)

lowest:
	@sh tests/lowest.sh "$(PYTHON)"

soak: $(VENV)/.ready-dev
	@sh tests/install-tools.sh
	SOCI_TESTS_SCALE=20 $(PYTEST) -m hypothesis
	SOCI_TESTS_SCALE=20 $(VENV)/bin/pytest tests/fuzz tests/reference
	$(VENV)/bin/pytest -m soak -s

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
	rm -rf $(VENV) .venv-lowest .demo .bench build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.ready: pyproject.toml tests/make-venv.sh
	@sh tests/make-venv.sh $(VENV) "$(PYTHON)" .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml tests/make-venv.sh
	@sh tests/make-venv.sh $(VENV) "$(PYTHON)" '.[dev]'
	@touch $@ $(VENV)/.ready
