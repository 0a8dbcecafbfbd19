//! A part of the API that a program of this machine serves: the API server hands such requests on to a Service, behind which the
//! program stands.

use std::net::Ipv4Addr;

use ortolan_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::fixture::Outcome;
use crate::installed::server::Server;

/// The Service of such a program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aggregated {
    pub(crate) namespace: &'static str,
    pub(crate) service: &'static str,
    /// Name of the APIService.
    pub(crate) api: &'static str,
}

impl Aggregated {
    /// A Service without a selector, and where its one endpoint is: the address under which the cluster reaches this machine.
    pub(crate) fn objects(self, address: Ipv4Addr, port: u16) -> [Value; 2] {
        let Self { namespace, service, .. } = self;
        let metadata = json!({"namespace": namespace, "name": service});
        let labels = json!({"kubernetes.io/service-name": service});
        [
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]},
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"namespace": namespace, "name": service, "labels": labels},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }),
        ]
    }

    /// Waits until the API server finds what `server` serves.
    pub(crate) async fn until_available(self, cluster: &Cluster, server: &mut Server) -> Outcome {
        let path = "jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{end}";
        let look = async || {
            let seen = cluster.run_kubectl(&["get", "apiservice", self.api, "-o", path]).await;
            let seen = seen.map_err(|error| error.to_string())?;
            if seen.contains("Available=True") { Ok(()) } else { Err(seen) }
        };
        server.until("to serve its part of the API", look).await.map(drop)
    }
}
