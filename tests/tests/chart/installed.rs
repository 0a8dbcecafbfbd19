//! The charts on a real API server and its controllers. No node runs the pods.

use std::time::Duration;

use crds::resource::InferenceModel;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{Shared, chart, repository, samples, shared};

const LIMIT: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "ortolan-system";
const OPERATOR: &str = "ortolan-operator";
const ACCOUNT: &str = "system:serviceaccount:ortolan-system:ortolan-operator";

/// What somebody may or may not do with a resource.
#[derive(Debug)]
struct Permission {
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    namespace: &'static str,
    name: &'static str,
    verbs: &'static [&'static str],
}

/// Something in a namespace, whichever it is.
const ANYWHERE: Permission =
    Permission { group: "", resource: "", subresource: "", namespace: "any", name: "", verbs: &[] };

const CHILD_VERBS: &[&str] = &["list", "watch", "create", "patch", "delete"];
const MODELS: Permission = Permission { group: "ortolan.dev", resource: "inferencemodels", ..ANYWHERE };
const PROMETHEUS: Permission = Permission { group: "monitoring.coreos.com", ..ANYWHERE };
const LEASES: Permission = Permission { group: "coordination.k8s.io", resource: "leases", ..ANYWHERE };

/// What the operator does.
const NEEDED: &[Permission] = &[
    Permission { verbs: &["list", "watch"], ..MODELS },
    Permission { subresource: "status", verbs: &["patch"], ..MODELS },
    Permission { subresource: "scale", verbs: &["patch"], ..MODELS },
    Permission { group: "autoscaling", resource: "horizontalpodautoscalers", verbs: CHILD_VERBS, ..ANYWHERE },
    Permission { group: "keda.sh", resource: "scaledobjects", verbs: CHILD_VERBS, ..ANYWHERE },
    Permission { resource: "services", verbs: CHILD_VERBS, ..ANYWHERE },
    Permission { resource: "configmaps", verbs: CHILD_VERBS, ..ANYWHERE },
    Permission { group: "apps", resource: "deployments", verbs: CHILD_VERBS, ..ANYWHERE },
    Permission { resource: "servicemonitors", verbs: CHILD_VERBS, ..PROMETHEUS },
    Permission { resource: "prometheusrules", verbs: CHILD_VERBS, ..PROMETHEUS },
    Permission { resource: "pods", verbs: &["list", "watch"], ..ANYWHERE },
    Permission { resource: "events", verbs: &["list"], ..ANYWHERE },
    Permission { group: "events.k8s.io", resource: "events", verbs: &["create", "patch"], ..ANYWHERE },
    Permission { namespace: NAMESPACE, name: OPERATOR, verbs: &["get", "update"], ..LEASES },
    Permission { namespace: NAMESPACE, verbs: &["create"], ..LEASES },
];

const DENIED: &[Permission] = &[
    Permission { verbs: &["create", "patch", "update", "delete"], ..MODELS },
    Permission { resource: "secrets", verbs: &["get", "list", "watch", "create"], ..ANYWHERE },
    Permission { resource: "secrets", namespace: NAMESPACE, verbs: &["get", "list"], ..ANYWHERE },
    Permission { resource: "nodes", namespace: "", verbs: &["get", "list", "watch"], ..ANYWHERE },
    Permission { resource: "pods", verbs: &["create", "patch", "delete"], ..ANYWHERE },
    Permission { subresource: "scale", verbs: &["get", "update"], ..MODELS },
    Permission {
        group: "autoscaling",
        resource: "horizontalpodautoscalers",
        subresource: "status",
        verbs: &["patch", "update"],
        ..ANYWHERE
    },
    Permission { resource: "prometheuses", verbs: &["list", "create", "patch", "delete"], ..PROMETHEUS },
    Permission { resource: "pods", subresource: "log", verbs: &["get"], ..ANYWHERE },
    Permission { resource: "pods", subresource: "exec", verbs: &["create"], ..ANYWHERE },
    Permission {
        group: "rbac.authorization.k8s.io",
        resource: "clusterroles",
        namespace: "",
        verbs: &["list", "create", "bind", "escalate"],
        ..ANYWHERE
    },
    Permission { name: OPERATOR, verbs: &["get", "create", "update"], ..LEASES },
    Permission { namespace: NAMESPACE, name: "of-somebody-else", verbs: &["get", "update"], ..LEASES },
];

/// Runs a test on the API once the chart is installed.
fn on_api(test: impl AsyncFnOnce(&'static Shared)) {
    let shared = shared();
    shared.runtime.block_on(async {
        installed(shared).await;
        test(shared).await;
    });
}

/// Installs the chart as users do, once, in a namespace that enforces `restricted`.
async fn installed(shared: &Shared) {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_init(async || {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted",
            "pod-security.kubernetes.io/warn": "restricted",
        }}});
        let namespaces: Api<Namespace> = Api::all(shared.cluster.client());
        namespaces.patch(NAMESPACE, &PatchParams::apply("test"), &Patch::Apply(&namespace)).await.unwrap();
        let said = install(shared, &[]).await;
        assert!(said.contains("kubectl apply -f -"), "the notes do not say what to try next: {said}");
        served(&shared.cluster.client()).await;
    })
    .await;
}

/// Installs or upgrades, and says what Helm does.
async fn install(shared: &Shared, settings: &[&str]) -> String {
    let chart = chart().display().to_string();
    let mut arguments = vec!["upgrade", "--install", "ortolan", &chart, "--namespace", NAMESPACE, "--wait=false"];
    // Without it, and without settings, Helm takes those of the release before.
    arguments.push("--reset-values");
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    shared.cluster.run_helm(&arguments).await.unwrap()
}

/// Waits until the API serves InferenceModels.
async fn served(client: &Client) {
    let models: Api<InferenceModel> = Api::namespaced(client.clone(), "default");
    let list = async || models.list(&ListParams::default()).await.map_err(|error| error.to_string());
    wait::until("InferenceModels to be served", LIMIT, list).await.unwrap();
}

pub(crate) fn takes_samples() {
    on_api(async |shared| {
        for (file, sample) in samples::all() {
            let path = file.display().to_string();
            let apply = ["apply", "--dry-run=server", "--validate=strict", "-o", "json", "-f", &path];
            let taken: Value = serde_json::from_str(&shared.cluster.run_kubectl(&apply).await.unwrap()).unwrap();
            // What the API server stores is what the types read: no field was dropped on the way.
            assert_eq!(taken["spec"], serde_json::to_value(&sample.spec).unwrap(), "{path}");
        }
        for manifest in ["models.yaml", "customer.yaml"] {
            let path = repository().join("deploy/manifests").join(manifest).display().to_string();
            shared.cluster.run_kubectl(&["apply", "--dry-run=client", "--validate=strict", "-f", &path]).await.unwrap();
        }
    });
}

pub(crate) fn is_admitted() {
    on_api(async |shared| {
        let client = shared.cluster.client();
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let (pod, _) = wait::until("a pod of the operator", LIMIT, async || {
            let found = pods.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await;
            match found.map(|list| list.items.into_iter().next()) {
                Ok(Some(pod)) => Ok(pod),
                Ok(None) => Err(format!("{:?}", deployments.get(OPERATOR).await.map(|deployment| deployment.status))),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
        .unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!(spec.service_account_name.as_deref(), Some(OPERATOR));
        let security = spec.containers[0].security_context.as_ref().unwrap();
        assert_eq!(security.read_only_root_filesystem, Some(true));
    });
}

pub(crate) fn may_what_it_must() {
    on_api(async |shared| {
        for (permissions, allowed) in [(NEEDED, true), (DENIED, false)] {
            for permission in permissions {
                for verb in permission.verbs {
                    let may = may(&shared.cluster.client(), ACCOUNT, permission, verb).await;
                    assert_eq!(may, allowed, "{verb} {permission:?}");
                }
            }
        }
    });
}

async fn may(client: &Client, user: &str, permission: &Permission, verb: &str) -> bool {
    let Permission { group, resource, subresource, namespace, name, verbs: _ } = permission;
    let review = json!({"metadata": {}, "spec": {"user": user, "resourceAttributes": {
        "group": group, "resource": resource, "subresource": subresource, "namespace": namespace, "name": name, "verb": verb,
    }}});
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &serde_json::from_value(review).unwrap()).await.unwrap();
    answer.status.is_some_and(|status| status.allowed)
}

pub(crate) fn aggregates() {
    on_api(async |shared| {
        let client = shared.cluster.client();
        let may_change = [("view", false), ("edit", true), ("admin", true)];
        for (role, _) in may_change {
            let (name, user) = (format!("test-{role}"), format!("--user={role}er"));
            let bind = ["create", "rolebinding", &name, "-n", "default", "--clusterrole", role, &user];
            shared.cluster.run_kubectl(&bind).await.unwrap();
        }
        let models = Permission { namespace: "default", ..MODELS };
        let scale = Permission { namespace: "default", subresource: "scale", ..MODELS };
        for (role, may_change) in may_change {
            let user = format!("{role}er");
            // The cluster adds roles up a moment after they are made.
            wait::until(&format!("{role} to look at InferenceModels"), LIMIT, async || {
                let may = may(&client, &user, &models, "list").await;
                if may { Ok(()) } else { Err("it may not") }
            })
            .await
            .unwrap();
            for (permission, verb) in [(&models, "create"), (&models, "delete"), (&scale, "patch")] {
                assert_eq!(may(&client, &user, permission, verb).await, may_change, "{role}: {verb}");
            }
        }
    });
}

pub(crate) fn upgrades() {
    on_api(async |shared| {
        let client = shared.cluster.client();
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
        let wide: Api<ClusterRole> = Api::all(client.clone());
        assert!(wide.get_opt(OPERATOR).await.unwrap().is_some());

        install(shared, &["replicas=2", "watchNamespace=default"]).await;
        let spec = deployments.get(OPERATOR).await.unwrap().spec;
        assert_eq!(spec.replicas, Some(2));
        let arguments = spec.template.spec.unwrap().containers[0].args.clone().unwrap_or_default();
        assert!(arguments.contains(&"--watch-namespace=default".to_owned()), "{arguments:?}");
        let narrow: Api<Role> = Api::namespaced(client.clone(), "default");
        assert!(narrow.get_opt(OPERATOR).await.unwrap().is_some());
        assert!(wide.get_opt(OPERATOR).await.unwrap().is_none());
        let pdbs: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), NAMESPACE);
        assert!(pdbs.get_opt(OPERATOR).await.unwrap().is_some());

        install(shared, &[]).await;
        assert!(wide.get_opt(OPERATOR).await.unwrap().is_some());
        assert!(narrow.get_opt(OPERATOR).await.unwrap().is_none());
    });
}

pub(crate) fn comes_back() {
    on_api(async |shared| {
        let client = shared.cluster.client();
        let models: Api<InferenceModel> = Api::namespaced(client.clone(), "default");
        let sample = repository().join("deploy/samples/pvc.yaml").display().to_string();
        shared.cluster.run_kubectl(&["apply", "-f", &sample]).await.unwrap();
        let before = models.get("espresso-volume").await.unwrap().metadata.uid;

        shared.cluster.run_helm(&["uninstall", "ortolan", "--namespace", NAMESPACE, "--wait=false"]).await.unwrap();
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
        assert!(deployments.get_opt(OPERATOR).await.unwrap().is_none());
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        assert!(definitions.get_opt("inferencemodels.ortolan.dev").await.unwrap().is_some());

        install(shared, &[]).await;
        assert!(deployments.get_opt(OPERATOR).await.unwrap().is_some());
        assert_eq!(models.get("espresso-volume").await.unwrap().metadata.uid, before);
        shared.cluster.run_kubectl(&["delete", "-f", &sample]).await.unwrap();
    });
}
