# What people do with this project, by name. The work itself is in tools/, one script for each thing.

PG_CONFIG ?= pg_config
SUITE ?=
TEST ?=
ARGS ?=

ifdef SCALE
export MIGRATOR_SCALE = $(SCALE)
endif
ifdef DURATION
export MIGRATOR_DURATION = $(DURATION)
endif

.PHONY: help
help:
	@echo 'make demo                      watch a table being changed under load, on a server of its own'
	@echo 'make test                      everything that is tested: SUITE=golden, TEST=name, MIGRATOR_PG=15,18 select'
	@echo 'make test-full                 the same with the long variants'
	@echo 'make lint                      formatting, clippy, licences'
	@echo 'make versions                  compile the extension for the versions of PostgreSQL that no server here has'
	@echo 'make deny                      licences and known vulnerabilities of dependencies'
	@echo 'make bench                     measurements: SCALE=, DURATION=, ARGS= select'
	@echo 'make install PG_CONFIG=path    build the extension and install it into a PostgreSQL (SUDO=sudo, PROFILE=dev)'
	@echo 'make installcheck PG_CONFIG=…  golden SQL tests against a running server (PGHOST, PGPORT, PGUSER)'
	@echo 'make reference                 write docs/reference.md from the comments of the SQL objects'
	@echo 'make agent                     build the program `migrator`'
	@echo 'make setup                     fetch what all this needs, into target/'
	@echo 'make clean                     remove everything that was built; what setup fetched stays'

.PHONY: setup setup-extras
setup:
	@tools/setup
setup-extras:
	@tools/setup extras

.PHONY: demo bench
demo: setup
	@PROFILE=release tools/install "$$(tools/in-env printenv PGRX_PG_CONFIG_PATH)"
	@tools/in-env cargo build --release -p migrator-agent
	@tools/in-env cargo run --release -p migrator-tests --bin demo -- $(ARGS)
# On 15, where Debian has pg_repack to compare with.
bench: setup-extras
	@PROFILE=release tools/install "$$(tools/servers | sed -n 's/^15 //p')"
	@tools/in-env cargo build --release -p migrator-agent
	@tools/in-env cargo run --release -p migrator-tests --bin bench -- $(ARGS)

.PHONY: test test-full
test: setup-extras
	@tools/test '$(SUITE)' '$(TEST)'
test-full: export MIGRATOR_TEST_FULL = 1
test-full: versions test

.PHONY: lint versions deny
lint: setup
	@tools/lint
versions: setup
	@tools/check-versions
deny:
	@tools/deny

.PHONY: install installcheck agent
install:
	@tools/get-libclang
	@tools/get-cargo-pgrx
	@PROFILE='$(PROFILE)' SUDO='$(SUDO)' tools/install '$(PG_CONFIG)'
installcheck:
	@tools/installcheck '$(PG_CONFIG)' $(TEST)
agent:
	@tools/in-env cargo build --release -p migrator-agent
	@echo "built $$(tools/in-env sh -c 'echo $${CARGO_TARGET_DIR:-target}')/release/migrator"

.PHONY: reference
reference: setup
	@PROFILE=dev tools/install "$$(tools/in-env printenv PGRX_PG_CONFIG_PATH)" crash-points
	@tools/with-cluster "$$(tools/in-env printenv PGRX_PG_CONFIG_PATH)" tools/reference

.PHONY: clean
clean:
	@tools/in-env cargo clean --profile dev
	@tools/in-env cargo clean --profile release
