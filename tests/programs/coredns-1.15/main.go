// CoreDNS with the plugins that answer for a cluster and no others: what is left out need not be built. There is no cache, so a
// test sees a change at once.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	// The order is the order in which a query passes the plugins.
	dnsserver.Directives = []string{"ready", "errors", "kubernetes"}
	coremain.Run()
}
