//go:build tools

// Pins KEDA's operator and the server of its metrics. This file is never compiled: its imports make `go mod tidy` keep every module
// that `go build` of these packages needs.
package main

import (
	_ "github.com/kedacore/keda/v2/cmd/adapter"
	_ "github.com/kedacore/keda/v2/cmd/operator"
)
