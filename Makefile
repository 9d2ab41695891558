# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo

.PHONY: setup demo test unit coverage hosts fuzz lint lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/python -m demo.synthesize $(RUN)/corpus
	$(BIN)/mvqkd run configs/demo.yaml

# The tests on a Ray cluster mostly wait, so the others run beside them.
ON_RAY := tests/faults tests/jobs

# $(call beside,TESTS ON RAY,VARIABLES OF THESE,VARIABLES OF THE OTHERS,OPTIONS OF BOTH)
define beside
	@mkdir -p build; trap 'kill $$on_ray 2>/dev/null' INT TERM; \
	$(2) $(BIN)/python -m pytest $(4) $(1) >build/tests-on-ray.log 2>&1 & on_ray=$$!; \
	$(3) $(BIN)/python -m pytest $(4) $(addprefix --ignore=,$(ON_RAY)); others=$$?; \
	echo "tests on a Ray cluster:"; wait $$on_ray; code=$$?; cat build/tests-on-ray.log; \
	exit $$((others > code ? others : code))
endef

test: setup
	$(call beside,$(ON_RAY))

unit: setup
	$(BIN)/python -m pytest -m "not integration and not shared"

# Lines inside Ray workers do not count: the tests of the plain classes cover what they run. So the faults, whose workers
# are all of Ray, are left out.
coverage: setup
	@rm -f .coverage build/lines.*
	$(call beside,tests/jobs,COVERAGE_FILE=build/lines.on-ray,COVERAGE_FILE=build/lines.others,--cov --cov-report=)
	@$(BIN)/coverage combine --quiet build/lines.on-ray build/lines.others
	@for room in models storage workers pipeline; do \
		$(BIN)/coverage report --include="$$room/*" --fail-under=85 || exit 1; \
	done

# A head, two workers and a store that share no disk, in network namespaces; for root.
hosts: setup
	MVQKD_TEST_HOSTS=1 $(BIN)/python -m pytest tests/faults/test_faults_hosts.py

# Random manifests, run files and tables; `make test` has a short form.
fuzz: setup
	$(BIN)/python -m tests.fuzz --cases 20000

# mypy finds the rooms by links under the one name that they have when they are imported.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/mvqkd
	for room in models storage workers pipeline __init__.py __main__.py; do \
		case $$room in __*) from=mvqkd/$$room ;; *) from=$$room ;; esac; \
		ln -sfn $(CURDIR)/$$from build/types/mvqkd/$$room; \
	done
	MYPYPATH=build/types $(BIN)/mypy

# Pinned versions for Python 3.11 to 3.13 out of pyproject.toml, and the same ones for a cluster's nodes, which develop
# nothing.
lock:
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --extra demo \
		--no-emit-index-url --quiet --constraint constraints.txt --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.12 --generate-hashes --extra aws \
		--no-emit-index-url --quiet --constraint requirements.lock --output-file deploy/requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info
