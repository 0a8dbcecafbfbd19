//go:build tools

// Pins the Prometheus Operator and what it puts beside each Prometheus. This file is never compiled: its imports make `go mod tidy`
// keep every module that `go build` of the packages needs. The tests take the definitions of its kinds from the module too.
package main

import (
	_ "github.com/prometheus-operator/prometheus-operator/cmd/operator"
	_ "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader"
)
