//go:build tools

// Pins prometheus-adapter. This file is never compiled: its import makes `go mod tidy` keep every module that `go build` of the package
// needs.
package main

import (
	_ "sigs.k8s.io/prometheus-adapter/cmd/adapter"
)
