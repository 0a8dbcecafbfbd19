//go:build tools

// Pins the Prometheus Operator, of which the tests take the definitions of its kinds. No program is built of it, and this file is
// never compiled: without it, the folder would be no package.
package main
