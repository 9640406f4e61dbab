# Everything lives in .venv, which the targets make by themselves. PYTHON=python3.12 chooses the interpreter
# for it; otherwise it is the first of these that is new enough.
PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.version_info >= (3, 11) and print("$(python)")' 2>/dev/null)))
BIN := .venv/bin
# Where make serve has its demo destination.
RECEIVER_PORT ?= 8081
# How many tests run at a time, each in a process: more of them than two cores can compute, and no more than those can
# answer in time. WORKERS=0 is one after the other, in one process.
WORKERS ?= 4
BESIDE = --numprocesses $(WORKERS)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: serve test aiohttp-tests check lint format docs bench bench-smoke fuzz objects soak audit sbom attack bound screenshots image stack secrets lock system-packages clean

# The gateway with its demo destination. Ctrl-C, or SIGTERM, drains it.
serve: .venv/.serving
	@exec $(BIN)/gateway serve --config config/demo.toml --with-receiver $(RECEIVER_PORT)

# What was compiled is kept, though the environment may say otherwise: the tests start some hundred processes.
test check: export PYTHONDONTWRITEBYTECODE =

# All tests, several at a time since most of them wait: make test ARGS='-x -k relay'
test: .venv/.testing .venv/.swift
	$(BIN)/pytest $(BESIDE) $(ARGS)

# aiohttp's own tests for multipart on our classes: its source distribution, which has them, is fetched once, to AIOHTTP.
# What differs on purpose stands in docs/library.md.
AIOHTTP_VERSION := 3.14.5
AIOHTTP ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/multipart-relay-gateway
aiohttp-tests: .venv/.testing $(AIOHTTP)/aiohttp-$(AIOHTTP_VERSION)/tests/test_multipart.py
	$(BIN)/python -m pytest -q -c /dev/null --rootdir $(AIOHTTP)/aiohttp-$(AIOHTTP_VERSION) --noconftest \
		-p no:cacheprovider -p tests.support.aiohttp_suite -o asyncio_mode=auto \
		-o asyncio_default_fixture_loop_scope=function --timeout 10 $(ARGS) \
		$(AIOHTTP)/aiohttp-$(AIOHTTP_VERSION)/tests/test_multipart.py

$(AIOHTTP)/aiohttp-$(AIOHTTP_VERSION)/tests/test_multipart.py: | .venv/.testing
	mkdir -p $(AIOHTTP)
	cd $(AIOHTTP) && $(CURDIR)/$(PIP) download --no-deps --no-binary aiohttp aiohttp==$(AIOHTTP_VERSION)
	tar -xzf $(AIOHTTP)/aiohttp-$(AIOHTTP_VERSION).tar.gz -C $(AIOHTTP)

# While one works: lint, types, and the tests that are not marked `sockets`, under a minute together.
check: lint
	$(BIN)/pytest -q $(BESIDE) -m 'not sockets' $(ARGS)

lint: .venv/.testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.testing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ as a site in var/site. A warning, or a link that leads nowhere, fails it. (The variable silences
# an announcement, which is not about the pages.)
docs: .venv/.documenting
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f config/mkdocs.yml

# The gateway beside its peers, 20 minutes at most: make bench ARGS='--only relay --body large --peers gateway,raw --rounds 1'
bench: .venv/.benching
	$(BIN)/python -m tests.bench $(ARGS)

# What an attack costs, a minute long; ARGS='--root ../other' is another checkout, ARGS='--only zstd' some of it.
attack: .venv/.testing
	$(BIN)/python -m tests.bench.attack $(ARGS)

# What the worst inputs take of memory, beside the bound that `gateway check` prints; a quarter of an hour.
bound: .venv/.testing
	$(BIN)/python -m tests.bench.bound $(ARGS)

# Any bytes, for the readers of bodies, heads, names, tokens and configurations, guided by what they reach. The small form
# is among the tests. make fuzz ARGS='--runs 1000000 codec'
fuzz: .venv/.fuzzing
	$(BIN)/python -m tests.fuzz $(ARGS)

# Object storage beside what its client alone does, and the memory of 3 GiB of unknown length; minutes, on a real server.
objects: .venv/.testing .venv/.swift
	$(BIN)/python -m tests.bench.objects $(ARGS)

# All kinds of clients at once, two minutes long: make soak ARGS='--minutes 60 --workers 2'
soak: .venv/.testing
	$(BIN)/python -m tests.bench.soak $(ARGS)

# Known weaknesses of what is installed, where their list can be reached; and a list of all of it, in var/sbom.json.
audit: .venv/.auditing
	$(BIN)/pip-audit --require-hashes --disable-pip -r config/requirements.txt

sbom: .venv/.auditing
	mkdir -p var
	$(BIN)/cyclonedx-py requirements config/requirements.txt --pyproject pyproject.toml -o var/sbom.json

# Small bodies, with nothing to be installed; it fails on a crash or a wrong answer, never on a number.
bench-smoke: .venv/.testing
	$(BIN)/python -m tests.bench --smoke

# Pin the newest versions that the .in files allow, for all platforms and interpreters.
lock: .venv/.serving
	$(PIP) install 'uv>=0.9,<1'
	cd config && ../$(BIN)/uv $(COMPILE)
	cd tests && ../$(BIN)/uv $(COMPILE)
	cd docs && ../$(BIN)/uv $(COMPILE)
	cd tests/swift && ../../$(BIN)/uv $(COMPILE)
	cd tests/bench && ../../$(BIN)/uv $(COMPILE)
	cd tests/fuzz && ../../$(BIN)/uv $(COMPILE)
	cd tests/audit && ../../$(BIN)/uv $(COMPILE)
	cd tests/stack && ../../$(BIN)/uv $(COMPILE)
COMPILE := pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--output-file requirements.txt requirements.in

# The pictures of the page that the docs show: of each state, light and dark, on a desktop and on a phone.
screenshots: .venv/.testing
	mkdir -p docs/pictures
	GATEWAY_SCREENSHOTS=$(CURDIR)/docs/pictures $(BIN)/pytest -q tests/server/test_page_in_browser.py

# The image without an engine: the Dockerfile's steps on a bare root file system, and what they make, run there (Linux,
# as root). It is among the tests.
image: .venv/.testing
	$(BIN)/pytest -q tests/deploy/test_image.py $(ARGS)

# What docker-compose.yml starts as a whole, as processes and without an engine (Linux): a minute of traffic through nginx, a
# gateway restarted in the middle of it, and all that the dashboard asks. make stack ARGS='--seconds 20', or ARGS=--stay
stack: .venv/.testing .venv/.swift
	@$(BIN)/python -m tests.stack $(ARGS)

# The picture of the dashboard that the docs show.
dashboard: .venv/.stacking .venv/.swift
	@$(BIN)/python -m tests.stack --picture docs/pictures/dashboard.png $(ARGS)

# What docker-compose.yml reads as secrets, in var/secrets: random, made once. The key for clients is var/secrets/gateway_key.
secrets: .venv/.serving
	@$(BIN)/python config/make_secrets.py var/secrets

# Other people's clients and servers, which some tests run and skip where they are absent (Debian, as root).
system-packages:
	@missing=; \
	for pair in curl:curl node:nodejs npm:npm go:golang-go nginx:nginx-light haproxy:haproxy caddy:caddy unzip:unzip 7z:p7zip-full openssl:openssl pg_ctlcluster:postgresql chromium:chromium promtool:prometheus systemd-analyze:systemd; do \
		command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; \
	done; \
	[ -z "$$missing" ] || { apt-get update -q && apt-get install -qy --no-install-recommends $$missing; }

clean:
	rm -rf .venv var dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# -- the environment: hashed dependencies first, then the package itself, which has no hash

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed, and none was found. Name yours: make PYTHON=/path/to/python3" >&2; exit 1; \
	elif ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "Python 3.11 or newer is needed; $(PYTHON) is not." >&2; exit 1; \
	fi
	"$(PYTHON)" -m venv .venv

.venv/.serving: config/requirements.txt pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r config/requirements.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.venv/.testing: tests/requirements.txt .venv/.serving
	$(PIP) install --require-hashes -r tests/requirements.txt
	@touch $@

# A real S3 server, which some tests run and skip where it is absent; it shares no package with the gateway.
.venv/.swift: tests/swift/requirements.txt | $(BIN)/python
	"$(BIN)/python" -m venv .venv/swift
	.venv/swift/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r tests/swift/requirements.txt
	@touch $@

.venv/.benching: tests/bench/requirements.txt .venv/.testing
	$(PIP) install --require-hashes -r tests/bench/requirements.txt
	@touch $@

.venv/.stacking: tests/stack/requirements.txt .venv/.testing
	$(PIP) install --require-hashes -r tests/stack/requirements.txt
	@touch $@

.venv/.fuzzing: tests/fuzz/requirements.txt .venv/.testing
	$(PIP) install --require-hashes -r tests/fuzz/requirements.txt
	@touch $@

.venv/.auditing: tests/audit/requirements.txt .venv/.serving
	$(PIP) install --require-hashes -r tests/audit/requirements.txt
	@touch $@

.venv/.documenting: docs/requirements.txt .venv/.serving
	$(PIP) install --require-hashes -r docs/requirements.txt
	@touch $@
