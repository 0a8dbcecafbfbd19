//! The modes HPA and KEDA with what a team brings along: the real Prometheus, prometheus-adapter and KEDA.
//!
//! Part of `make accept` alone: these programs take long to build.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]
#![expect(clippy::expect_used, reason = "a test that panics has failed, which is what is meant")]

#[path = "../operator/access.rs"]
mod access;
#[path = "../operator/audit.rs"]
#[allow(dead_code, reason = "shared with the operator's tests")]
mod audit;
mod busy;
#[path = "../operator/fixture.rs"]
#[allow(dead_code, reason = "shared with the operator's tests")]
mod fixture;
mod handover;
mod hpa;
mod installed;
mod keda;
mod load;
#[path = "../operator/models.rs"]
#[allow(dead_code, reason = "shared with the operator's tests")]
mod models;
#[path = "../operator/operator.rs"]
#[allow(dead_code, reason = "shared with the operator's tests")]
mod operator;
#[path = "../operator/outcome.rs"]
mod outcome;
#[path = "../operator/space.rs"]
#[allow(dead_code, reason = "shared with the operator's tests")]
mod space;
mod watch;
#[path = "../operator/web.rs"]
#[allow(dead_code, reason = "shared with the operator's tests")]
mod web;

use std::process::ExitCode;

use fixture::{Beside, Fixture, Outcome};
use installed::Installed;
use libtest_mimic::{Arguments, Trial};
use space::Space;

/// The cluster's name.
const CLUSTER: &str = "test-autoscaling";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let fixture: &'static Fixture = Box::leak(Box::new(Fixture::new()));
    let installed: &'static Installed = Box::leak(Box::default());
    let conclusion = libtest_mimic::run(&arguments, trials(fixture, installed));
    let ended = fixture.end(conclusion.has_failed());
    if conclusion.has_failed() || ended.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Each runs alone: two loads at once would be one that nobody planned.
fn trials(fixture: &'static Fixture, installed: &'static Installed) -> Vec<Trial> {
    let left_out = Fixture::reason_to_leave_out();
    if let Some(reason) = left_out {
        fixture::tell(&format!("left out: all tests of autoscaling: {reason}"));
    }
    macro_rules! trials {
        ($($namespace:literal $name:literal $test:path,)*) => {
            vec![$(
                Trial::test($name, move || {
                    let test = async |space: &Space| -> Outcome { $test(space, installed).await };
                    Ok(fixture.run(Beside::Nobody, $namespace, test)?)
                })
                .with_ignored_flag(left_out.is_some())
            ),*]
        };
    }
    trials![
        "hpa" "hpa::replicas_follow_the_load" hpa::follows_the_load,
        // KEDA itself is in the namespace of its name, and a test deletes its own.
        "scaled-object" "keda::replicas_follow_the_load" keda::follows_the_load,
        "away" "keda::nothing_is_removed_while_prometheus_is_away" keda::holds_without_prometheus,
        "handover" "handover::replicas_never_dip" handover::never_dips,
    ]
}
