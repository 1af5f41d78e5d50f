# Every target works on a clean clone; `make` alone says what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Static programs, as the image holds them, and one build cache for everything.
export CGO_ENABLED := 0

LINTER := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The modules of go.work, as folders; asked for each time, so that a new one is in every target at once.
MODULES = $(shell go list -m -f '{{.Dir}}')

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install what tests need (a Java runtime, Maven, psql, Chromium, Kafka's jars), or say what to install
	@./tools/setup

build: ## every program into bin/
	@mkdir -p bin
	go build -o bin/ -ldflags '-X github.com/tidemark/tidemark/shared/telemetry.Version=$(VERSION)' \
		$$(go list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' work)

run: build ## build, then run everything in one process: bin/tidemark up
	bin/tidemark up

test: setup ## all tests on a real Apache Kafka and a private Postgres, the stories on the embedded broker too, each benchmark once
	go run ./integration/cmd/servers -- go test -count=1 -timeout 45m work
	TEST_BROKER=embedded go test -count=1 -timeout 15m ./integration ./integration/story
	go run ./integration/cmd/servers -- go test -count=1 -short -timeout 15m -run '^$$' -bench . -benchtime 1x work | grep -v 'no test files'

soak: setup ## random faults with fresh seeds, for as long as one likes: ROUNDS=1000 DEATHS=200 unless set
	go test -count=1 -timeout 0 -v ./integration/fault -run 'ExactlyOnce|EveryDeath' -rounds $(or $(ROUNDS),1000) -deaths $(or $(DEATHS),200)

drill: setup ## lose the database and get it back, step by step
	go test -count=1 -timeout 15m -v -run Recovery ./integration

bench: setup ## measure, against references in the same run; prints a table and writes bench.json
	BENCH_JSON=$(CURDIR)/bench.json go run ./integration/cmd/servers -- \
		go test -count=1 -timeout 60m -p 1 -run '^$$' -bench . -benchtime 1x ./consumer-service/app ./integration/bench

generate: ## write generated code anew from its specifications
	go generate work

lint: ## formatting, vet, golangci-lint, what ends tests from the wrong goroutine, each module alone, generated code
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l); \
		[ -z "$$unformatted" ] || { echo "gofmt -w these:" $$unformatted; exit 1; }
	go vet work
	go run $(LINTER) run $$(go list -m -f '{{.Dir}}/...')
	cd tools && GOWORK=off go test ./... && GOWORK=off go build -o $(CURDIR)/bin/testgoroutine ./testgoroutine
	go vet -vettool=$(CURDIR)/bin/testgoroutine work
	@for module in $(MODULES) $(CURDIR)/tools; do \
		echo "alone: $${module#$(CURDIR)/}"; \
		(cd "$$module" && GOWORK=off go mod tidy -diff && GOWORK=off go build -o /dev/null ./...) || exit 1; \
	done
	@generated() { git ls-files -co --exclude-standard '*.gen.go' | xargs -r sha256sum; }; \
		before=$$(generated); $(MAKE) --no-print-directory generate; \
		[ "$$before" = "$$(generated)" ] || { echo "make generate changed files: commit them"; git status --short; exit 1; }

clean: ## remove what was built and fetched
	rm -rf bin .cache

.PHONY: $(shell awk -F: '/^[a-z-]+:/ { print $$1 }' Makefile)
