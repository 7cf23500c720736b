# Verbs for people and for CI. `make` alone lists them; each one sets up what it needs. GNU make 3.81, which is that of
# macOS, understands all of it.
#
#   PYTHON=/path/to/python  the CPython >= 3.12 to build the environment with (else one is looked for)
#   VENV=DIR                where the environment goes (default .venv)
#   ARGS="..."              more arguments for pytest, the benchmark or the demo
#   RUNS=N                  inputs per fuzz target (default 20000)

VENV ?= .venv
RUNS ?= 20000
PYTHON ?=
ARGS ?=
# Which tests `make check` runs: pyproject.toml says what the marks mean.
UNIT := not process and not root
# Two at once where make keeps their lines apart (4.0 and newer).
AT_ONCE := $(if $(filter output-sync,$(.FEATURES)),-j2 --output-sync=target)
ifeq ($(shell uname -s),Darwin)
MACOS_PARTS := macos-unit macos-proxy macos-tunnel
# Tests of what Linux alone has.
NOT_HERE := --ignore=tests/tun/linux --ignore=tests/lab --ignore=tests/bench
else
MACOS_PARTS := macos-fakes
endif
# Without bytecode each worker rewrites all assertions anew, and each process that a test starts compiles the program.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
COMPILE = $(VENV)-lock/bin/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help venv demo check unit test coverage mutants lint format bench wanbench tunnelbench fuzz docs deb installs man requirements clean
.PHONY: test-macos macos-unit macos-proxy macos-tunnel macos-fakes
.PHONY: test-packages lab-packages bench-packages
.SUFFIXES:
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:[^#]*## / { printf "  make %-13s%s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.dev ## the environment with all tools, in .venv

demo: $(VENV)/.run ## exit and proxy in one process, ready for curl; Ctrl-C ends it
	@$(BIN)/cryprq-proxy demo $(ARGS)

check: $(VENV)/.dev ## before each commit: lint, types and the tests that need neither root nor another process
	@$(MAKE) --no-print-directory $(AT_ONCE) lint unit

unit: $(VENV)/.dev ## the tests of `make check` alone
	$(BIN)/python -m pytest -q -n logical --dist worksteal -m "$(UNIT)" $(NOT_HERE) $(ARGS)

coverage: $(VENV)/.dev ## what the unit tests reach; fails for a package below its floor
	COVERAGE_CORE=sysmon $(BIN)/python -m pytest -q -n logical --dist worksteal -m "$(UNIT)" \
		--cov=cryprq_proxy --cov=tun --cov-report=json:.coverage.json $(ARGS)
	$(BIN)/python -m tests.coverage_floors .coverage.json

test: $(VENV)/.dev test-packages ## all tests
	$(BIN)/python -m pytest -q -rs -n 4 --dist worksteal $(ARGS)

test-macos: $(MACOS_PARTS) ## on a Mac, what only a Mac can prove (asks for sudo); elsewhere, what stands for one

macos-unit: unit

macos-proxy: $(VENV)/.dev
	$(BIN)/python -m pytest -q -rs tests/e2e/test_curl.py tests/e2e/test_http_requests.py \
		tests/e2e/test_udp_associate.py tests/e2e/test_carrier_loss.py $(ARGS)

macos-tunnel: $(VENV)/.dev
	sudo $(BIN)/python -m pytest -q -rs -p no:cacheprovider tests/macos $(ARGS)

macos-fakes: $(VENV)/.dev
	@echo "this is no Mac: a process without what only Linux has, and programs that stand for those of macOS, are tested"
	$(BIN)/python -m pytest -q -n logical tests/tun/macos tests/e2e/test_macos.py $(ARGS)

mutants: $(VENV)/.dev ## small faults, each of which the unit tests of its module must find
	$(BIN)/python -m tests.mutants.run $(ARGS)

lint: $(VENV)/.dev ## ruff, its formatter and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff put things in order
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/.dev bench-packages ## the proxy, side by side with a C pair
	$(BIN)/python bench/run.py $(ARGS)

wanbench: $(VENV)/.dev lab-packages bench-packages ## the proxy on a long line, side by side with others; as root
	@$(call install_package,nginx /usr/sbin/nginx,nginx-light)
	@$(build_xray)
	$(BIN)/python bench/wan.py $(ARGS)

tunnelbench: $(VENV)/.dev lab-packages ## system-wide mode, side by side with wireguard-go; as root
	@$(build_wireguard)
	@$(call install_package,wg,wireguard-tools)
	$(BIN)/python bench/tunnel.py $(ARGS)

fuzz: $(VENV)/.fuzz ## every fuzz target, RUNS inputs each, from the seeds in tests/fuzz/corpus
	@for target in tests/fuzz/fuzz_*.py; do \
		name=$$(basename "$$target" .py); name=$${name#fuzz_}; seeds=tests/fuzz/corpus/$$name; \
		[ -d "$$seeds" ] || { echo "$$target has no seeds: put at least one input into $$seeds" >&2; exit 1; }; \
		echo "$$target"; \
		mkdir -p .fuzz/$$name; \
		$(BIN)/python "$$target" -runs=$(RUNS) -timeout=10 -verbosity=0 $(ARGS) .fuzz/$$name "$$seeds" || exit 1; \
	done

docs: $(VENV)/.docs ## the pages of docs/ as a site, in build/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "Open build/site/index.html"

deb: $(VENV)/.run ## the package for this Debian and newer ones, in dist
	@$(call install_package,dpkg-shlibdeps,dpkg-dev)
	@$(call install_package,strip,binutils)
	@$(call install_package,patchelf,patchelf)
	$(BIN)/python -m tools.deb $(ARGS)

installs: $(VENV)/.run ## wheel, sdist and tree by pip, pipx and uv, on each CPython that is here
	@$(BIN)/python -m tools.installs $(if $(ARGS),--only "$(ARGS)")

man: $(VENV)/.run ## the man pages in docs/man, from --help and configs/
	$(BIN)/python -m tools.manpages

requirements: ## resolve the newest dependencies and pin them with hashes
	@$(find_python); "$$python" -m venv --clear $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip --disable-pip-version-check --quiet --no-input install pip-tools
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --all-build-deps -o requirements.txt pyproject.toml
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --all-build-deps --extra dev -c requirements.txt \
		-o requirements-dev.txt pyproject.toml
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --extra fuzz -c requirements-dev.txt \
		-o requirements-fuzz.txt pyproject.toml
	CUSTOM_COMPILE_COMMAND="make requirements" $(COMPILE) --extra docs -c requirements-dev.txt \
		-o requirements-docs.txt pyproject.toml
	@rm -rf $(VENV)-lock

clean: ## remove the environment, caches and build output
	rm -rf $(VENV) $(VENV)-* .hypothesis .fuzz .coverage* .mypy_cache .pytest_cache .ruff_cache build dist bench/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Sets $python. Running a candidate is the only proof: a version manager's shim may stand in the path and refuse.
define find_python
python=; for candidate in $(if $(PYTHON),"$(PYTHON)",python3.12 python3.13 python3.14 python3 python); do \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; \
	then python="$$candidate"; break; fi; \
done; \
if [ -z "$$python" ]; then \
	echo "No CPython 3.12 or newer was found$(if $(PYTHON), at $(PYTHON)): install one and say" \
		"make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1; \
fi
endef

# For Intel Macs its makers give out no compiled cryptography any more.
define refuse_intel_mac
if [ "$$(uname -s)" = Darwin ] && ! command -v cargo >/dev/null && \
	[ "$$("$$python" -c 'import platform; print(platform.machine())')" = x86_64 ]; then \
	echo "$$python is for Intel Macs, which have no compiled cryptography: on Apple silicon take a Python for arm64, on" \
		"an Intel Mac install Rust and OpenSSL first, with which pip compiles it (docs/macos.md)" >&2; \
	exit 1; \
fi
endef

# Built anew when the pins of the runtime change, so that nothing that left them stays. Depths: run, develop, fuzz; and beside them the site.
# Bytecode is written for what is used, when it is used first; all of it is a third of the environment's size. Running
# needs neither pip nor rich's colours for source text, together a quarter; what comes on top brings them back.
get_pip = $(BIN)/python -c "import pip" 2>/dev/null || $(BIN)/python -m ensurepip >/dev/null
$(VENV)/.run: requirements.txt pyproject.toml
	@$(find_python); $(refuse_intel_mac); echo "Setting up $(VENV) with $$("$$python" --version)"; \
	rm -rf $(VENV); \
	"$$python" -m venv $(VENV) || { \
		echo "Python could not make an environment: on Debian and Ubuntu install python3-venv first" >&2; \
		exit 1; \
	}
	@$(PIP) install --no-compile --require-hashes -r requirements.txt
	@$(PIP) install --no-compile --no-deps --no-build-isolation -e .
	@$(PIP) uninstall --yes pygments pip
	@find $(VENV)/lib -name __pycache__ -prune -exec rm -rf {} +
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	@$(get_pip)
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev requirements-fuzz.txt
	@$(PIP) install --require-hashes -r requirements-fuzz.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.run requirements-docs.txt
	@$(get_pip)
	@$(PIP) install --require-hashes -r requirements-docs.txt
	@touch $@

# Debian packages, where that is possible; what needs a missing one says so and is skipped, but in CI it is a failure.
# RUNLEVEL=1 keeps packages from starting their services. $(1): commands, any of which is enough; $(2): the package.
# Another apt may hold the lock for a while.
APT := -qq -o DPkg::Lock::Timeout=300
MISSING := $(if $(filter true,$(CI)),exit 1,true)
SKIPPED := $(if $(filter true,$(CI)),,: what needs it is skipped)
define install_package
if ! { $(foreach command,$(1),command -v $(command) ||) false; } >/dev/null; then \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing $(2)"; \
		export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
		{ apt-get $(APT) update && apt-get $(APT) install -y --no-install-recommends $(2); } >/dev/null </dev/null || \
			{ echo "Could not install $(2)$(SKIPPED)"; $(MISSING); }; \
	else \
		echo "$(2) is not installed$(SKIPPED)"; $(MISSING); \
	fi; \
fi
endef

# Unpacked and not installed: the package takes over the machine's own resolver.
define unpack_resolved
if ! [ -e /usr/lib/systemd/systemd-resolved ] && ! [ -e build/systemd-resolved ]; then \
	directory=$$(mktemp -d) && \
	(cd "$$directory" && apt-get $(APT) download systemd-resolved && dpkg-deb -x *.deb root) >/dev/null 2>&1 && \
		mkdir -p build && mv "$$directory/root" build/systemd-resolved || \
		{ echo "Could not unpack systemd-resolved$(SKIPPED)"; $(MISSING); }; \
	rm -rf "$$directory"; \
fi
endef

# Debian's is years older than the newest, and much slower.
define build_wireguard
if ! command -v go >/dev/null; then \
	echo "Go is not installed: the newest wireguard-go cannot be built, Debian's takes its place"; \
elif ! GOBIN="$(CURDIR)/bench/build" go install golang.zx2c4.com/wireguard@latest; then \
	echo "Go could not build the newest wireguard-go: $$([ -e bench/build/wireguard ] && \
		echo "the one that was built before" || echo "Debian's") takes its place"; \
fi; \
[ -e bench/build/wireguard ] || { $(call install_package,wireguard-go,wireguard-go); }
endef

# go names the program after its directory, which is main.
define build_xray
if ! command -v go >/dev/null; then \
	echo "Go is not installed: xray-core cannot be built, and is measured only where PATH finds it"; \
else \
	GOBIN="$(CURDIR)/bench/build/xray-core" go install github.com/xtls/xray-core/main@latest && \
		mv bench/build/xray-core/main bench/build/xray || \
		echo "Go could not build the newest xray-core: one that was built before takes its place, or none"; \
fi
endef

test-packages: lab-packages
	@$(call install_package,curl,curl)
	@$(call install_package,chromium chromium-browser google-chrome,chromium)
	@$(call install_package,nginx /usr/sbin/nginx,nginx-light)
	@$(call install_package,haproxy /usr/sbin/haproxy,haproxy)
	@$(call install_package,caddy,caddy)
	@$(call install_package,sshd /usr/sbin/sshd,openssh-server)
	@$(call install_package,strace,strace)
	@$(call install_package,gsettings,libglib2.0-bin gsettings-desktop-schemas)
	@$(call install_package,zsh,zsh)
	@$(call install_package,fish,fish)
	@$(call install_package,tcsh,tcsh)
	@$(call install_package,debootstrap /usr/sbin/debootstrap,debootstrap)
	@$(call install_package,dpkg-shlibdeps,dpkg-dev)
	@$(call install_package,patchelf,patchelf)

# What the hosts of the lab run, all of them network namespaces.
lab-packages:
	@$(call install_package,ip,iproute2)
	@$(call install_package,nft,nftables)
	@$(call install_package,ping,iputils-ping)
	@$(call install_package,dig,dnsutils)
	@$(call install_package,iperf3,iperf3)
	@$(call install_package,dbus-daemon,dbus)
	@$(call install_package,dnsmasq /usr/sbin/dnsmasq,dnsmasq-base)
	@$(unpack_resolved)

bench-packages:
	@$(call install_package,cc gcc clang,gcc libc6-dev)
	@$(call install_package,ss-server,shadowsocks-libev)
