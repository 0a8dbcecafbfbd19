//! What the operator writes, as the API server saw it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use ortolan_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::access;
use crate::fixture::Outcome;

/// Every write of the operator's account, and nothing else.
pub(crate) fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "Metadata", "users": [access::user()]},
            {"level": "None"},
        ],
    })
}

/// A moment in the audit log.
pub(crate) struct Mark {
    log: PathBuf,
    offset: u64,
}

/// A write that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Write {
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) code: i64,
    /// The token that it was asked with: each operator has one of its own.
    pub(crate) token: String,
}

impl Mark {
    /// Now.
    pub(crate) fn now(cluster: &Cluster) -> Outcome<Self> {
        let log = cluster.audit_log()?;
        let offset = std::fs::metadata(&log)?.len();
        Ok(Self { log, offset })
    }

    /// What was written since, besides the Lease.
    pub(crate) fn writes(&self) -> Outcome<Vec<Write>> {
        Ok(self.all()?.into_iter().filter(|write| write.resource != "leases").collect())
    }

    /// What was written since in a namespace, or in none.
    pub(crate) fn writes_in(&self, namespace: &str) -> Outcome<Vec<Write>> {
        let concerns = |write: &Write| write.namespace == namespace || write.namespace.is_empty();
        Ok(self.writes()?.into_iter().filter(concerns).collect())
    }

    /// What was written since, the Lease included.
    pub(crate) fn all(&self) -> Outcome<Vec<Write>> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut writes = Vec::new();
        for line in BufReader::new(file).lines() {
            // The last line may be half written.
            writes.extend(serde_json::from_str::<Value>(&line?).ok().map(|event| Write::of(&event)));
        }
        Ok(writes)
    }
}

impl Write {
    fn of(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
        Self {
            verb: text(&event["verb"]),
            resource: text(&object["resource"]) + &subresource,
            namespace: text(&object["namespace"]),
            name: text(&object["name"]),
            code: event["responseStatus"]["code"].as_i64().unwrap_or_default(),
            token: text(&event["user"]["extra"]["authentication.kubernetes.io/credential-id"][0]),
        }
    }
}

/// The tokens that were used.
pub(crate) fn tokens(writes: &[Write]) -> BTreeSet<&str> {
    writes.iter().map(|write| write.token.as_str()).collect()
}
