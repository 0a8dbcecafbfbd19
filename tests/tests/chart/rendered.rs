//! What the charts render.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    OLDEST_KUBERNETES, chart, crds_chart, helm, is_update, objects, of_kind, repository, template, template_as,
};

/// The most that the operator may ever be allowed: each counts once for its group, resource and verb.
const MOST_PERMISSIONS: usize = 75;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart").join(name)
}

pub(crate) fn lints() {
    for chart in [chart(), crds_chart()] {
        let path = chart.display().to_string();
        helm(&["lint", "--strict", "--quiet", "--kube-version", OLDEST_KUBERNETES, &path]).unwrap();
    }
}

pub(crate) fn is_reviewed() {
    let values = fs::read_dir(folder("values")).unwrap().map(|entry| entry.unwrap().path());
    let mut stale = Vec::new();
    let mut known = BTreeSet::new();
    for file in values {
        let name = file.file_name().unwrap().to_owned();
        let reviewed = folder("rendered").join(&name);
        // Without the definition, which has a test of its own and would bury the rest.
        let now = template(&["--values", &file.display().to_string(), "--set", "crds.install=false"]).unwrap();
        if is_update() {
            fs::write(&reviewed, &now).unwrap();
        }
        if fs::read_to_string(&reviewed).unwrap_or_default() != now {
            stale.push(name.clone());
        }
        known.insert(name);
    }
    assert!(stale.is_empty(), "rendered differently: {stale:?}; write it anew with UPDATE=1 and review it");
    for entry in fs::read_dir(folder("rendered")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(known.contains(&name), "{} is rendered from no values", name.display());
    }
}

pub(crate) fn has_the_rules_of_the_repository() {
    let rules = fs::read_to_string(repository().join("deploy/rules/prometheus-adapter.yaml")).unwrap();
    let file = chart().join("files/prometheus-adapter.yaml");
    if is_update() {
        fs::write(&file, &rules).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap() == rules, "the chart's copy is stale; write it anew with UPDATE=1");
    let rendered = template(&["--set", "prometheus.adapterRulesNamespace=watch"]).unwrap();
    let objects = objects(&rendered);
    let config_maps = of_kind(&objects, "ConfigMap");
    let [config_map] = config_maps[..] else { panic!("not one ConfigMap") };
    assert_eq!(config_map["metadata"]["namespace"], "watch");
    // The adapter reads the rules at the top, where its chart's values have them one level lower.
    let config: Value = serde_saphyr::from_str(config_map["data"]["config.yaml"].as_str().unwrap()).unwrap();
    let rules: Value = serde_saphyr::from_str(&rules).unwrap();
    assert_eq!(config["rules"], rules["rules"]["custom"]);
}

pub(crate) fn traces_as_told() {
    let flags = |sample: &str| template(&["--set", "tracing.endpoint=http://collector:4318", "--set", sample]).unwrap();
    assert!(flags("tracing.sample=0").contains("- --tracing-sample=0\n"));
    let left_open = flags("tracing.sample=null");
    assert!(left_open.contains("--tracing-endpoint=http://collector:4318") && !left_open.contains("--tracing-sample"));
}

/// A Service is named by RFC 1035, which neither allows dots nor a digit in front, and Helm allows both.
pub(crate) fn takes_any_release() {
    for (release, name) in [("my.ortolan", "my-ortolan-operator"), ("1st.one", "ortolan-1st-one-operator")] {
        let objects = objects(&template_as(release, &[]).unwrap());
        let names = ["Deployment", "Service"].map(|kind| of_kind(&objects, kind)[0]["metadata"]["name"].as_str());
        assert_eq!(names, [Some(name), Some(format!("{name}-metrics").as_str())]);
    }
}

pub(crate) fn has_our_version() {
    let version = env!("CARGO_PKG_VERSION");
    for folder in [chart(), crds_chart()] {
        let chart = fs::read_to_string(folder.join("Chart.yaml")).unwrap();
        let chart: Value = serde_saphyr::from_str(&chart).unwrap();
        assert_eq!((chart["version"].as_str(), chart["appVersion"].as_str()), (Some(version), Some(version)));
        for dependency in chart["dependencies"].as_array().into_iter().flatten() {
            assert_eq!(dependency["version"], version);
        }
    }
}

pub(crate) fn permits_little() {
    for namespace in ["", "shop"] {
        let rendered = template(&["--set", &format!("watchNamespace={namespace}")]).unwrap();
        let objects = objects(&rendered);
        let permissions = permissions(&objects);
        let _ = writeln!(std::io::stderr(), "  {} permissions of at most {MOST_PERMISSIONS}", permissions.len());
        assert!(!permissions.is_empty() && permissions.len() <= MOST_PERMISSIONS, "{permissions:#?}");
        for (group, resource, verb) in &permissions {
            let told = format!("{group}/{resource} {verb}");
            assert!([group, resource, verb].iter().all(|part| *part != "*"), "{told}");
            assert!(
                !["secrets", "nodes", "pods/log", "pods/exec", "serviceaccounts"].contains(&resource.as_str()),
                "{told}"
            );
            assert!(
                group != "rbac.authorization.k8s.io" && !["escalate", "bind", "impersonate"].contains(&verb.as_str())
            );
        }
        let is_wide = |kind| of_kind(&objects, kind).len();
        assert_eq!(is_wide("ClusterRoleBinding"), usize::from(namespace.is_empty()), "watching `{namespace}`");
        let leases =
            of_kind(&objects, "ClusterRole").into_iter().any(|role| role["rules"].to_string().contains("leases"));
        assert!(!leases, "the Lease lies in one namespace");
    }
}

/// Every (group, resource, verb) of the roles that are bound to somebody. Those for people are bound by the cluster.
fn permissions(objects: &[Value]) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for binding in ["RoleBinding", "ClusterRoleBinding"].iter().flat_map(|kind| of_kind(objects, kind)) {
        let role = &binding["roleRef"];
        let is_bound = |object: &&&Value| {
            object["metadata"]["name"] == role["name"]
                && object["metadata"]["namespace"] == binding["metadata"]["namespace"]
        };
        let roles = of_kind(objects, role["kind"].as_str().unwrap());
        let bound = roles.iter().find(is_bound).expect("the role that is bound");
        for rule in bound["rules"].as_array().unwrap() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        found.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    found
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}
