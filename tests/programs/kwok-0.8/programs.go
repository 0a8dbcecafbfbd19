//go:build tools

// Pins kwok, which plays nodes and the pods on them. This file is never compiled: its import makes `go mod tidy` keep every
// module that `go build` of the package needs.
package main

import (
	_ "sigs.k8s.io/kwok/cmd/kwok"
)
