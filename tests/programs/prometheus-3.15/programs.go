//go:build tools

// Pins promtool and the server. This file is never compiled: its imports make `go mod tidy` keep every module that `go build` of the
// packages needs.
package main

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
