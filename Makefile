# Run "make" for the list of targets. Variables can be given on the command
# line: make bench BENCH=Convert, make test TIMEOUT=40m.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

P        ?= 2
TIMEOUT  ?= 30m
BENCH    ?= .
FUZZTIME ?= 20s
SAMPLE   ?= 240

# In a recipe: everything but libvirtjob and the examples. A failing look-up ends
# the recipe, which it would not inside the command line that uses it.
PURE = pure=$$(scripts/packages pure);

# What part of the full tier test-full runs.
TESTS ?= full

# Where every tool can be installed, a missing tool is a failure, not a skip.
REQUIRE_TOOLS := $(or $(KVMBACKUP_REQUIRE_TOOLS),$(if $(filter true,$(CI)),1),$(if $(filter 0,$(shell id -u)),1))
NO_SKIPS      := $(if $(filter 1,$(REQUIRE_TOOLS)),-no-skips)
REPORT        := scripts/report
# There is a target for vet; a look at each package's tests again, once for each way to build them, takes its time.
GO_TEST        = go test -json -vet=off -p $(P) -timeout $(TIMEOUT)
TOOLS_ENV      = KVMBACKUP_REQUIRE_TOOLS=$(REQUIRE_TOOLS) KVMBACKUP_GUEST_KERNEL="$$(scripts/guest-kernel)"

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that building and testing need
	scripts/install-deps test

.PHONY: demo
demo: ## Full and incremental backup of a real VM, then a restore
	scripts/install-deps demo
	go run ./examples/quickstart

# KVMBACKUP_TESTS is the one switch of the tiers, read in internal/lab; empty is the quick one.
.PHONY: test
test: deps ## Run the quick tier: each kind of fault and story once, under the race detector where goroutines are ours
	export $(TOOLS_ENV) KVMBACKUP_TESTS=; \
	{ status=0; $(GO_TEST) $$(scripts/packages plain) || status=1; $(GO_TEST) -race $$(scripts/packages race) || status=1; exit $$status; } | \
	$(REPORT) -budgets $(NO_SKIPS)

.PHONY: test-further
test-further: deps ## Run what the quick tier leaves out: the other tests, and its shortened loops at their usual length
	export $(TOOLS_ENV); scripts/test-further $(P) -timeout $(TIMEOUT) | $(REPORT) $(NO_SKIPS)

.PHONY: test-full
test-full: TIMEOUT = 3h
test-full: deps ## Run the full tier: every crash point and history, which takes long; TESTS=full/4 runs one in four
	$(TOOLS_ENV) KVMBACKUP_TESTS=$(TESTS) $(GO_TEST) -count=1 $$(scripts/packages all) | $(REPORT) $(NO_SKIPS)

.PHONY: test-sample
test-sample: deps ## Run loops of the full tier, one in eight of their points, and begin none after SAMPLE seconds (240)
	export KVMBACKUP_REQUIRE_TOOLS=$(REQUIRE_TOOLS); scripts/test-sample $(SAMPLE) | $(REPORT) $(NO_SKIPS)

.PHONY: test-pure
test-pure: ## Run the quick tier of the packages without cgo, with the tools that are installed
	$(PURE) go test -timeout $(TIMEOUT) $$pure

.PHONY: test-matrix
test-matrix: deps ## Run a quick tier with other Debian releases' libvirt and QEMU; RELEASE=trixie chooses
	scripts/test-matrix $(RELEASE)

.PHONY: bench
bench: ## Run the benchmarks; BENCH=regexp chooses
	scripts/install-deps bench
	go test -run '^$$' -bench '$(BENCH)' -benchmem -p 1 -timeout 90m ./...

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (20s)
	scripts/fuzz $(FUZZTIME)

.PHONY: fmt
fmt: ## Format the Go files
	gofmt -s -w .

.PHONY: lint
lint: ## Run golangci-lint, built once into the user's cache
	scripts/golangci-lint run

.PHONY: generate
generate: ## Make the generated files again
	go generate ./...

.PHONY: check-fmt
check-fmt: ## Fail when a Go file is not formatted
	@unformatted=$$(gofmt -s -l .); [ -z "$$unformatted" ] || { printf 'run "make fmt" for:\n%s\n' "$$unformatted"; exit 1; }

.PHONY: check-generate
check-generate: ## Fail when a generated file is stale
	scripts/check-generate

.PHONY: check-cgo
check-cgo: ## Fail when cgo or libvirt is used outside libvirtjob and the examples
	scripts/check-cgo

.PHONY: tidy-check
tidy-check: ## Fail when go.mod or go.sum is not tidy
	go mod tidy -diff

.PHONY: vet
vet: ## Run go vet on everything
	go vet ./...

.PHONY: nocgo
nocgo: ## Build and vet without cgo what must not need it
	$(PURE) CGO_ENABLED=0 go build $$pure
	$(PURE) CGO_ENABLED=0 go vet $$pure

.PHONY: dlopen
dlopen: ## Build libvirtjob without libvirt's headers, for loading it at run time
	@if compgen -G 'libvirtjob/*.go' >/dev/null; then set -x; \
	  PKG_CONFIG=/bin/false go build -tags libvirt_dlopen ./libvirtjob; \
	else echo 'no libvirtjob in the tree'; fi

.PHONY: outside
outside: ## Build host programs outside the repository, and run that of docs/embed.md
	scripts/check-outside

.PHONY: clean
clean: ## Remove build output; the caches stay
	rm -rf bin out
	find . -name '*.test' -type f -delete
	find . -name '*.prof' -type f -delete
