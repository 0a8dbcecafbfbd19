//go:build tools

// Pins promtool. This file is never compiled: its import makes `go mod tidy` keep every module that `go build` of the package needs.
package main

import (
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
