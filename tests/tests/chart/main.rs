//! The charts: what they render, what they refuse, and what a real API server makes of them.
//!
//! Helm alone is enough for the first half; the second starts a control plane, on which controllers make the pods that no
//! node runs. What is rendered for each file of `values/` is committed in `rendered/`, reviewed, and compared; `UPDATE=1`
//! writes it anew. The samples are tried here too, since it is these charts that bring the definition they are written for.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod definition;
mod installed;
mod refused;
mod rendered;
mod samples;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Trial};
use ortolan_tests::cluster::{Cluster, Options};
use ortolan_tests::programs::{self, Profile, Purpose};
use ortolan_tests::report::Report;
use serde_json::Value;
use tokio::runtime::Runtime;

/// The oldest Kubernetes that the charts say they are for. Helm without a cluster plays one that it is told.
const OLDEST_KUBERNETES: &str = "1.33.0";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let conclusion = libtest_mimic::run(&arguments, trials());
    let ended = SHARED.get().is_none_or(|shared| shared.cluster.end(conclusion.has_failed()).is_ok());
    if conclusion.has_failed() || !ended { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn trials() -> Vec<Trial> {
    vec![
        trial("lint_has_nothing_to_say", rendered::lints),
        trial("what_is_rendered_is_what_was_reviewed", rendered::is_reviewed),
        trial(
            "the_rules_for_prometheus_adapter_are_those_of_the_repository",
            rendered::has_the_rules_of_the_repository,
        ),
        trial("of_traces_the_share_may_be_left_to_the_environment", rendered::traces_as_told),
        trial("whatever_helm_takes_for_a_release_is_installed", rendered::takes_any_release),
        trial("the_versions_are_those_of_the_workspace", rendered::has_our_version),
        trial("the_operator_may_do_little", rendered::permits_little),
        trial("bad_values_are_refused_with_a_sentence", refused::values),
        trial("an_older_kubernetes_is_refused", refused::older_kubernetes),
        trial("the_definition_in_the_chart_is_the_generated_one", definition::is_the_generated_one),
        trial("braces_in_the_definition_survive", definition::keeps_braces),
        trial("the_samples_ask_for_nothing_that_is_not_built", samples::are_built),
        trial("the_samples_name_the_files_that_make_models_makes", samples::have_the_digests),
        trial("the_api_server_takes_the_samples", installed::takes_samples),
        trial("it_is_admitted_where_restricted_is_enforced", installed::is_admitted),
        trial("the_operators_account_may_do_what_it_must_and_no_more", installed::may_what_it_must),
        trial("view_edit_and_admin_include_inference_models", installed::aggregates),
        trial("an_upgrade_narrows_it_to_one_namespace", installed::upgrades),
        trial("what_is_uninstalled_leaves_the_models_and_comes_back", installed::comes_back),
    ]
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// The control plane, started by the first test that asks for it.
struct Shared {
    runtime: Runtime,
    cluster: Cluster,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

fn shared() -> &'static Shared {
    SHARED.get_or_init(|| {
        let runtime = Runtime::new().unwrap();
        let options = Options::named("test-chart").control_plane_alone();
        let cluster = runtime.block_on(Cluster::from_environment(&options)).unwrap();
        Shared { runtime, cluster }
    })
}

/// Runs helm without a cluster. Returns what it wrote, or what it said when it refused.
fn helm(arguments: &[&str]) -> Result<String, String> {
    let programs = programs::ensure(Profile::newest(), &[Purpose::Helm], Report::to_stderr()).unwrap();
    let output = Command::new(programs.path("helm").unwrap()).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// What the chart renders with these arguments added.
fn template(arguments: &[&str]) -> Result<String, String> {
    template_as("ortolan", arguments)
}

/// The same for another release.
fn template_as(release: &str, arguments: &[&str]) -> Result<String, String> {
    let chart = chart().display().to_string();
    let fixed = ["template", release, &chart, "--namespace", "ortolan-system", "--kube-version", OLDEST_KUBERNETES];
    helm(&[&fixed[..], arguments].concat())
}

fn objects(yaml: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap();
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> PathBuf {
    repository().join("charts/ortolan")
}

fn crds_chart() -> PathBuf {
    chart().join("charts/ortolan-crds")
}

fn is_update() -> bool {
    std::env::var("UPDATE").is_ok()
}
