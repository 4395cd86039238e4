# Two commands do everything on a fresh machine: `make reproduce` and `make test`.

# PYTHON, TORCH and PIP_ARGS, given as `make test TORCH=system` or in the environment, reach
# .ci/environment.sh through the environment. Paths here are relative: the folder may have spaces.
python = .venv/bin/python
bare = .venv-bare/bin/python
# Only the plugins that we name: TORCH=system may bring others along, and their warnings are errors.
run_tests = . ./.ci/compiler.sh && PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
# Not what takes long and was run, of many cases three, and of compiled's own tests those that say
# what happens under python -O, and a sample.
fewer = -m 'not once' --few --ignore-glob='tests/backends/compiled/test_[!c]*'
pytest = $(python) -m pytest -p xdist -p hypothesispytest --dist worksteal -n 2

.PHONY: help environment reproduce test lint types docs unit optimized bare clean
.NOTPARALLEL:

help:
	@echo 'make reproduce  set up .venv, then reproduce every figure and table at the preset quick'
	@echo 'make test       set up .venv, then everything below'
	@echo 'make lint       style and format'
	@echo 'make types      static types'
	@echo 'make docs       the documentation as a site, in site/'
	@echo 'make unit       the tests, the examples in docstrings, README.md and docs/'
	@echo 'make optimized  the tests that need an extra, under python -O, where assert vanishes'
	@echo 'make bare       the others with no optional extra installed, under python -O too'
	@echo 'make clean      remove the environments and caches'
	@echo
	@echo 'PYTHON=python3.12   the Python to use; otherwise the first of python3, python3.13,'
	@echo '                    python3.12 and python3.11 that is at least 3.11'
	@echo 'TORCH=system        use the torch (2.11 or newer) which that Python has'
	@echo 'PIP_ARGS="..."      arguments for pip, to name a mirror or the index of a CPU build of torch'

environment:
	@sh .ci/environment.sh

reproduce: environment
	$(python) -m ctflow reproduce all --preset quick --workers 2 --check

test: lint types docs unit optimized bare

lint: environment
	$(python) -m ruff check
	$(python) -m ruff format --check

types: environment
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(python) -m pyright

docs: environment
	# Strictly: a broken link, a page outside the navigation or an unreadable docstring fails.
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict

unit: environment
	$(run_tests) $(pytest) --doctest-modules ctflow tests

optimized: environment
	$(run_tests) PYTHONOPTIMIZE=1 $(pytest) -m 'not once' --few \
		$$(grep -rlE '^[a-z].*importorskip' tests --include='test_*.py' \
		--exclude-dir=packaging --exclude-dir=property --exclude-dir=reproductions --exclude-dir=scipy)

bare: environment
	$(python) .ci/bare_environment.py .venv-bare
	# Two parts side by side: there is no xdist without extras. The first is shown when it ends. It
	# begins with what compiles programs, which -O does not allow.
	@export OMP_NUM_THREADS=1; log=.venv-bare/first.log; \
	( $(run_tests) $(bare) -m pytest tests/reproductions tests/backends/compiled $(fewer) && \
		$(run_tests) PYTHONOPTIMIZE=1 $(bare) -m pytest tests/backends/native tests/testing \
		$(fewer) ) >$$log 2>&1 & first=$$!; \
	( $(run_tests) PYTHONOPTIMIZE=1 $(bare) -m pytest tests $(fewer) --ignore=tests/packaging \
		--ignore=tests/reproductions --ignore=tests/backends/native --ignore=tests/testing ); \
		second=$$?; \
	wait $$first; first=$$?; cat $$log; test $$first -eq 0 -a $$second -eq 0

clean:
	rm -rf .venv .venv-bare .hypothesis .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
