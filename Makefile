# `make` alone prints the targets. Nothing here asks a question.

SHELL       := /bin/sh
GO          ?= go
GIT         := git -c safe.directory='*'
VERSION     := $(shell $(GIT) describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X main.version=$(VERSION) -X github.com/outguard/outguard/host/version.linked=$(VERSION)
GOBUILD     := $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
PROMISED    := libvirt,qemu,vsock-loopback
FUZZTIME    ?= 30s
BENCHTIME   ?= 1s

# What is tested on guests. One package after the other: two guests at a time are
# what two cores carry. The first one starts libvirtd where none runs.
VMPACKAGES  := ./vmtests/vm ./vmtests/image ./vmtests/product ./host/domain/... ./host/respond/... ./host/monitor ./vmtests/scenario ./vmtests/soak

# Of the monitor's tests those that need libvirt, which stand in files of that
# name: make unit has run the others.
MONITORTESTS = $(shell grep -ho '^func Test[A-Za-z0-9]*' host/monitor/*libvirt_test.go | cut -d' ' -f2 | paste -sd'|')

# Guests run 6.12 unless OUTGUARD_KERNEL says otherwise; make test plays these
# scenarios on 6.1 as well, and make test-kernels all of them on each.
KERNELS     := 6.1 6.12 7.2
PART        := TestScenarios/(10|15|20|30|60)-

# 90-hooks, which runs every hook there is, 91-acted, which tries to make the record
# lie, and 92-switch, which changes what is reported under load, make test leaves to
# make test-kernels; of the first two 60-hooks plays a part.

# Go's own cache of test results would answer for a guest that never booted.
VMTEST      := $(GO) test -buildvcs=false -count=1 -timeout 40m

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## put every binary into bin/
	@mkdir -p bin
	@for d in host/cmd/* plugins/cmd/*; do [ -d "$$d" ] || continue; \
		echo "build $$(basename $$d)"; CGO_ENABLED=0 $(GOBUILD) -o bin/ ./$$d || exit 1; done
	@for d in guest/cmd/*; do [ -d "$$d" ] || continue; \
		echo "build $$(basename $$d), static"; CGO_ENABLED=0 $(GOBUILD) -tags netgo,osusergo -o bin/ ./$$d || exit 1; done

.PHONY: install-check install-vm install-kernels install-deploy install-browser
install-check:
	@.ci/install check
install-vm:
	@.ci/install vm
install-kernels:
	@.ci/install kernels
install-deploy:
	@.ci/install check deploy
install-browser:
	@.ci/install browser

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, and the layout rules
	@echo "== gofmt"; bad=$$(gofmt -l $$($(GIT) ls-files -co --exclude-standard '*.go')); \
		[ -z "$$bad" ] || { echo "not formatted:"; echo "$$bad"; exit 1; }
	@echo "== go vet"; $(GO) vet ./...
	@echo "== staticcheck"; $(GO) tool staticcheck ./...
	@echo "== layout"; $(GO) test ./vmtests/layout

.PHONY: generated
generated: install-check ## fail if generating the BPF objects and the rest anew changes them
	@echo "== go generate"; .ci/generated guest/bpf host/api/apipb plugins/engine

.PHONY: unit
unit: install-check ## unit tests with -race, the fuzz targets' seeds among them
	@echo "== go test -race"; GORACE=atexit_sleep_ms=0 $(GO) test -buildvcs=false -race -timeout 30m ./...

.PHONY: check
check: install-check lint generated unit ## everything that needs no VM

.PHONY: vm
vm: install-vm build ## the scenarios on a real guest
	@for p in $(VMPACKAGES); do echo "== on guests: $$p"; \
		run=.; [ $$p != ./host/monitor ] || run='^($(MONITORTESTS))$$'; \
		OUTGUARD_REQUIRE=$(PROMISED) $(VMTEST) -run "$$run" $$p || exit 1; done
	@echo "== on guests with 6.1: a part of the scenarios"; \
		OUTGUARD_KERNEL=6.1 OUTGUARD_REQUIRE=$(PROMISED) $(VMTEST) -run '$(PART)' ./vmtests/scenario

.PHONY: test-kernels
test-kernels: install-kernels build ## all scenarios on each of the stock kernels 6.1, 6.12 and 7.2
	@echo "== the kernels' hooks"; OUTGUARD_REQUIRE=matrix $(VMTEST) -run '^TestKernelHooks$$' ./guest/sensor
	@for k in $(KERNELS); do for p in ./vmtests/vm ./vmtests/scenario; do echo "== on guests with $$k: $$p"; \
		OUTGUARD_KERNEL=$$k OUTGUARD_REQUIRE=$(PROMISED),matrix $(VMTEST) $$p || exit 1; done; done

.PHONY: test-long
test-long: install-vm build ## the long forms of what make test plays: a flood of a million opens, then 20 minutes of soak
	@OUTGUARD_REQUIRE=$(PROMISED),long $(VMTEST) -run 'TestScenarios/(10|70)-' ./vmtests/scenario
	@$(MAKE) --no-print-directory soak

.PHONY: test
test: check vm ## install what is needed and run everything

.PHONY: bench
bench: install-check install-vm build ## print the numbers, one line each: bench NAME VALUE UNIT
	@$(GO) run -buildvcs=false ./vmtests/cmd/outguard-bench -benchtime $(BENCHTIME) -bin bin

.PHONY: bench-guest
bench-guest: install-kernels build ## what the agent costs a guest, in instructions, into docs/COST.md
	@$(GO) run -buildvcs=false ./vmtests/cmd/outguard-bench-guest -doc docs/COST.md

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 30s)
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done

SOAKTIME    ?= 20m

.PHONY: soak
soak: install-vm build ## a guest under load and random faults for SOAKTIME (default 20m)
	@$(GO) run -buildvcs=false ./vmtests/cmd/outguard-soak -for $(SOAKTIME)

.PHONY: demo
demo: install-vm build ## set everything up and catch an intruder in a real VM
	@$(GO) run -buildvcs=false ./vmtests/cmd/outguard-demo run

.PHONY: demo-clean
demo-clean: ## remove everything that make demo left, but its downloads
	@$(GO) run -buildvcs=false ./vmtests/cmd/outguard-demo clean

PREFIX      ?= /usr/local

.PHONY: install
install: build ## install the host's side and its systemd unit (PREFIX, DESTDIR)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin bin/outguard
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/lib/outguard bin/outguardd bin/outguard-engine-tsem bin/outguard-agent
	ln -sfn ../lib/outguard/outguardd $(DESTDIR)$(PREFIX)/bin/outguardd
	install -d -m 0755 $(DESTDIR)/etc/systemd/system
	sed 's|/usr/local/|$(PREFIX)/|' host/deploy/outguardd.service >$(DESTDIR)/etc/systemd/system/outguardd.service
	install -D -m 0644 host/deploy/outguard.sysusers $(DESTDIR)/etc/sysusers.d/outguard.conf
	install -D -m 0644 host/deploy/outguard.tmpfiles $(DESTDIR)/etc/tmpfiles.d/outguard.conf
	@echo "next: systemd-sysusers && systemd-tmpfiles --create outguard.conf && systemctl daemon-reload && systemctl enable --now outguardd"

# Packages need a version that sorts: 0.0.0~gitDATE.COMMIT until there is a tag.
PACKAGE     := $(GO) tool -modfile .ci/tools/go.mod nfpm package -f guest/deploy/nfpm.yaml -t bin/packages/

.PHONY: packages
packages: build ## the guest's .deb and .rpm, into bin/packages/, with their digests
	@rm -rf bin/packages; mkdir -p bin/packages
	@version=$$($(GIT) describe --tags --exact-match 2>/dev/null | sed 's/^v//'); \
	[ -n "$$version" ] || version=$$($(GIT) log -1 --format=0.0.0-git%cd.%h --date=format:%Y%m%d%H%M); \
	for kind in deb rpm; do \
		OUTGUARD_VERSION=$$version SOURCE_DATE_EPOCH=$$($(GIT) log -1 --format=%ct) $(PACKAGE) -p $$kind || exit 1; done
	@cd bin/packages && sha256sum *

.PHONY: test-deploy
test-deploy: install-deploy packages ## the .deb in a Debian that boots with systemd, on 6.1, and the .rpm in a root
	@OUTGUARD_KERNEL=6.1 OUTGUARD_REQUIRE=$(PROMISED),deploy $(VMTEST) -v ./vmtests/deploy

.PHONY: test-page
test-page: install-browser ## a bundle's page in Debian's Chromium
	@OUTGUARD_REQUIRE=chromium $(GO) test -buildvcs=false -count=1 -v -run Page ./host/bundle

.PHONY: clean
clean: ## remove bin/
	rm -rf bin
