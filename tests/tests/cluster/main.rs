//! The local cluster, tried out.
//!
//! One main brings up what the tests share when the first of them needs it, runs the tests, and takes it down again. They run one
//! after another unless `--test-threads` says otherwise: some break parts that others need, and two processors start one cluster
//! sooner than two at a time. Times are printed and never asserted.
//!
//! What cannot run here is left out and named: without root all that needs a node, and with `CONTEXT` set, which names a cluster that
//! runs already, all that needs parts of our own.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]
#![expect(clippy::expect_used, reason = "a test that panics has failed, which is what is meant")]

mod control_plane;
mod faults;
mod fixture;
mod node;
mod pod;
mod remains;

use std::future::Future;
use std::process::ExitCode;

use fixture::{Fixture, Outcome};
use libtest_mimic::{Arguments, Trial};

/// What a test needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Any cluster: one of ours, or that of `CONTEXT`.
    AnyNode,
    /// A node of ours.
    OurNode,
    /// Any API: a control plane of ours, which a plain user may start, or that of `CONTEXT`.
    AnyApi,
    /// A control plane of ours.
    OurApi,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let fixture: &'static Fixture = Box::leak(Box::new(Fixture::new()));
    let conclusion = libtest_mimic::run(&arguments, trials(fixture));
    let ended = fixture.end(conclusion.has_failed());
    if conclusion.has_failed() || ended.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn trials(fixture: &'static Fixture) -> Vec<Trial> {
    use Needs::{AnyApi, AnyNode, OurApi, OurNode};
    vec![
        trial(fixture, "control_plane::alone_it_stores_and_returns", AnyApi, control_plane::stores_and_returns),
        trial(fixture, "control_plane::kwok_plays_nodes_and_their_pods", OurApi, control_plane::kwok_plays_nodes),
        trial(
            fixture,
            "control_plane::a_part_that_ends_is_named_with_its_log",
            OurApi,
            control_plane::names_a_dead_part,
        ),
        trial(fixture, "node::a_pod_answers_another_by_the_name_of_its_service", AnyNode, node::answers_by_name),
        trial(fixture, "node::logs_and_exec_reach_a_pod", AnyNode, node::logs_and_exec),
        trial(
            fixture,
            "node::the_machine_reaches_services_and_pods_reach_the_machine",
            OurNode,
            node::machine_and_pods,
        ),
        trial(fixture, "node::of_two_pods_that_want_the_one_gpu_one_waits", OurNode, node::one_gpu),
        trial(fixture, "node::an_image_without_a_name_is_refused", OurNode, node::nameless_image),
        trial(
            fixture,
            "pod::our_image_serves_a_photo_by_the_name_of_its_service",
            OurNode,
            pod::serves_a_photo_by_name,
        ),
        trial(fixture, "faults::a_killed_kubelet_is_noticed_and_comes_back", OurNode, faults::killed_kubelet),
        trial(fixture, "faults::containers_outlive_containerd", OurNode, faults::killed_containerd),
        trial(fixture, "faults::a_frozen_api_answers_again_once_thawed", OurNode, faults::frozen_api),
        trial(
            fixture,
            "remains::clusters_run_side_by_side_and_one_that_ends_leaves_nothing",
            OurNode,
            remains::side_by_side,
        ),
        trial(fixture, "remains::a_killed_harness_is_cleaned_up_after", OurNode, remains::killed_harness),
    ]
}

fn trial<F, Test>(fixture: &'static Fixture, name: &str, needs: Needs, test: F) -> Trial
where
    F: FnOnce(&'static Fixture) -> Test + Send + 'static,
    Test: Future<Output = Outcome>,
{
    let left_out = fixture.reason_to_leave_out(needs);
    if let Some(reason) = left_out {
        fixture::tell(&format!("left out: {name}: {reason}"));
    }
    Trial::test(name, move || Ok(fixture.run(test(fixture))?)).with_ignored_flag(left_out.is_some())
}
