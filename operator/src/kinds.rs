//! The kinds that a cluster may lack: which of them it serves, looked up again and again, so that one that is installed later
//! is picked up and one that is removed is let go of.
//!
//! The API server is asked what it serves, which everybody may ask; watching definitions would take a permission of its own.

use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::Duration};

use futures::future;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::APIResourceList};
use kube::{Client, Resource};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::watch, time};

use crate::{
    cache::{Audience, Cache, Scope},
    causes::chain,
    keda,
    metrics::Metrics,
    prometheus,
};

/// One small question for each group each time; whoever installs a definition waits no longer than this for the first object.
const INTERVAL: Duration = Duration::from_secs(5);

/// Between questions as long as there was no answer at all: nothing is reconciled before the first.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// An answer that takes longer is none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What we do with an object of such a kind. While a definition is being removed, it cannot be written any more, and an object
/// that is made anew all the same would keep the definition from ever being gone.
const NEEDED_VERBS: [&str; 5] = ["list", "watch", "create", "patch", "delete"];

/// A kind that a cluster may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OptionalKind {
    /// By which Prometheus scrapes.
    ServiceMonitor,
    /// By which Prometheus records and alerts.
    PrometheusRule,
    /// By which KEDA scales.
    ScaledObject,
}

impl OptionalKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ServiceMonitor, Self::PrometheusRule, Self::ScaledObject];

    /// Its group and version.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::ServiceMonitor | Self::PrometheusRule => prometheus::API_VERSION,
            Self::ScaledObject => keda::API_VERSION,
        }
    }

    /// The kind.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ServiceMonitor => "ServiceMonitor",
            Self::PrometheusRule => "PrometheusRule",
            Self::ScaledObject => keda::KIND,
        }
    }

    /// Its definition.
    #[must_use]
    pub fn definition(self) -> &'static str {
        match self {
            Self::ServiceMonitor => "servicemonitors.monitoring.coreos.com",
            Self::PrometheusRule => "prometheusrules.monitoring.coreos.com",
            Self::ScaledObject => "scaledobjects.keda.sh",
        }
    }
}

/// The kinds that are served.
pub type Served = BTreeSet<OptionalKind>;

/// What the cluster serves. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct Kinds {
    client: Client,
    metrics: Arc<Metrics>,
    /// None until the API server has answered for the first time.
    served: watch::Sender<Option<Served>>,
}

impl Kinds {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self { client, metrics, served: watch::Sender::new(None) }
    }

    /// Looks for ever.
    pub async fn follow(self) {
        loop {
            self.look().await;
            let interval = if self.served.borrow().is_some() { INTERVAL } else { FIRST_INTERVAL };
            time::sleep(interval).await;
        }
    }

    /// Looks now. Without an answer for each of them, what was known stays.
    pub async fn look(&self) {
        let groups: BTreeSet<&str> = OptionalKind::ALL.into_iter().map(OptionalKind::api_version).collect();
        let answers = future::join_all(groups.into_iter().map(|group| self.ask(group))).await;
        if let Some(served) = answers.into_iter().collect::<Option<Vec<Served>>>() {
            self.take(served.into_iter().flatten().collect());
        }
    }

    /// What is served of a group and version; none without an answer.
    async fn ask(&self, api_version: &str) -> Option<Served> {
        match time::timeout(TIMEOUT, self.client.list_api_group_resources(api_version)).await {
            Ok(Ok(list)) => Some(served(api_version, &list)),
            // Nothing of this group is installed. That answer is no object of Kubernetes, so it has a code and no reason.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Some(Served::new()),
            Ok(Err(error)) => {
                tracing::debug!(api_version, error = chain(&error), "the API server does not tell what it serves");
                None
            }
            Err(_) => None,
        }
    }

    fn take(&self, now: Served) {
        self.served.send_if_modified(|served| {
            if served.as_ref() == Some(&now) {
                return false;
            }
            for kind in OptionalKind::ALL {
                let is_served = now.contains(&kind);
                if served.as_ref().is_none_or(|served| served.contains(&kind) != is_served) {
                    tracing::info!(kind = kind.name(), is_served, "what the cluster serves");
                }
                self.metrics.serves(kind, is_served);
            }
            *served = Some(now);
            true
        });
    }

    /// Whether a kind is served, as far as is known.
    #[must_use]
    pub fn is_served(&self, kind: OptionalKind) -> bool {
        self.served.borrow().as_ref().is_some_and(|served| served.contains(&kind))
    }

    /// The kinds that the cluster is known to lack.
    #[must_use]
    pub fn missing(&self) -> Vec<OptionalKind> {
        let served = self.served.borrow();
        let lacks = |kind: &OptionalKind| served.as_ref().is_some_and(|served| !served.contains(kind));
        OptionalKind::ALL.into_iter().filter(lacks).collect()
    }

    /// Changes with what is served.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Served>> {
        self.served.subscribe()
    }

    /// Waits until it is known what the cluster serves.
    pub async fn wait_until_known(&self) {
        // The sender is ours, so it is there.
        let _ = self.subscribe().wait_for(Option::is_some).await;
    }

    /// Follows the objects of a kind whenever it is served, for ever.
    pub async fn follow_objects<K>(self, kind: OptionalKind, cache: Cache<K>, scope: Scope, audience: Audience)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let has = |served: &Option<Served>| served.as_ref().is_some_and(|served| served.contains(&kind));
        let mut served = self.subscribe();
        loop {
            if served.wait_for(has).await.is_err() {
                return;
            }
            let follow = cache.clone().follow(scope.clone(), audience.clone(), Arc::clone(&self.metrics));
            let is_let_go = tokio::select! {
                () = follow => false,
                _ = served.wait_for(|served| !has(served)) => true,
            };
            cache.forget();
            if !is_let_go {
                // It is not there any more, which the list of kinds may show a moment later.
                time::sleep(FIRST_INTERVAL).await;
                self.look().await;
            }
        }
    }
}

fn served(api_version: &str, list: &APIResourceList) -> Served {
    let is_usable = |kind: &OptionalKind| {
        let mut of_kind = list.resources.iter().filter(|it| it.kind == kind.name() && !it.name.contains('/'));
        of_kind.any(|it| NEEDED_VERBS.iter().all(|verb| it.verbs.iter().any(|has| has == verb)))
    };
    OptionalKind::ALL.into_iter().filter(|kind| kind.api_version() == api_version).filter(is_usable).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn list(resources: Value) -> APIResourceList {
        serde_json::from_value(json!({"kind": "APIResourceList", "groupVersion": "any/v1", "resources": resources}))
            .unwrap()
    }

    fn resource(name: &str, kind: &str, verbs: &[&str]) -> Value {
        json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": verbs})
    }

    #[test]
    fn a_kind_counts_only_while_it_can_be_written() {
        let (all, reading) =
            (&["create", "delete", "get", "list", "patch", "update", "watch"], &["delete", "get", "list", "watch"]);
        let both = list(json!([
            resource("servicemonitors", "ServiceMonitor", all),
            resource("prometheusrules", "PrometheusRule", reading),
            resource("prometheusrules/status", "PrometheusRule", all),
            resource("prometheuses", "Prometheus", all),
        ]));
        assert_eq!(
            served(prometheus::API_VERSION, &both),
            Served::from([OptionalKind::ServiceMonitor]),
            "the other one is being removed"
        );
        assert_eq!(served(prometheus::API_VERSION, &list(json!([]))), Served::new());
    }

    #[test]
    fn a_kind_counts_only_in_its_own_group() {
        let verbs = &["create", "delete", "get", "list", "patch", "update", "watch"];
        let list = list(json!([resource("scaledobjects", "ScaledObject", verbs)]));
        assert_eq!(served(keda::API_VERSION, &list), Served::from([OptionalKind::ScaledObject]));
        assert_eq!(served(prometheus::API_VERSION, &list), Served::new());
    }
}
