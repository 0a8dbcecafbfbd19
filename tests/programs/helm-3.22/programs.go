//go:build tools

// Pins helm. This file is never compiled: its import makes `go mod tidy` keep every module that `go build` of the package needs.
package main

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
