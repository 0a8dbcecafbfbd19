//! Monitoring as its users have it: a real Prometheus, made by the Prometheus Operator, that finds models by what our operator makes
//! for it. What takes too long for every day is here: `make accept` runs it.
//!
//! Two Prometheus look at one cluster. `main` is as anybody would make it. `fast` looks every two seconds and has our rules at a quicker
//! pace, see [`rules`]: there each alert is made to fire by its cause, and ends after it. Times are printed and never asserted.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]
#![expect(clippy::expect_used, reason = "a test that panics has failed, which is what is meant")]

#[allow(dead_code, reason = "shared with the operator's tests, which use all of it")]
#[path = "../operator/models.rs"]
mod models;
#[path = "../operator/outcome.rs"]
mod outcome;
#[allow(dead_code, reason = "shared with the operator's tests, which use all of it")]
#[path = "../operator/space.rs"]
mod space;
#[allow(dead_code, reason = "shared with the operator's tests, which use all of it")]
#[path = "../operator/web.rs"]
mod web;

mod clients;
mod collector;
mod data;
mod fixture;
mod gpu;
mod instances;
mod operator;
mod panels;
mod prometheus;
mod requests;
mod rules;
mod targets;

use std::process::ExitCode;

use fixture::{Beside, Fixture};
use libtest_mimic::{Arguments, Trial};
use outcome::Outcome;
use space::Space;

/// Tests at once. They wait more than they work, but some keep a processor busy.
const THREADS: usize = 5;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let fixture: &'static Fixture = Box::leak(Box::new(Fixture::new()));
    let conclusion = libtest_mimic::run(&arguments, trials(fixture));
    let ended = fixture.end(conclusion.has_failed());
    if conclusion.has_failed() || ended.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// In the order in which they begin: what takes long first, and what disturbs the others last.
fn trials(fixture: &'static Fixture) -> Vec<Trial> {
    use Beside::{Nobody, Others};
    let left_out = Fixture::reason_to_leave_out();
    if let Some(reason) = left_out {
        outcome::tell(&format!("left out: all of this: {reason}"));
    }
    macro_rules! trials {
        ($($beside:ident $namespace:literal $name:literal $test:path,)*) => {
            vec![$(trial(fixture, $beside, $namespace, $name, $test).with_ignored_flag(left_out.is_some())),*]
        };
    }
    let mut trials = trials![
        Others "new" "targets::those_of_a_new_model_are_up" targets::are_up,
        Others "burns" "requests::a_missed_objective_burns_fast_and_slowly" requests::miss_the_objective,
        Others "down" "instances::a_model_whose_file_has_gone_bad_is_down" instances::cannot_load,
        Others "data" "data::under_load_each_rule_panel_and_query_has_data" data::is_there,
        Others "grows" "requests::a_queue_that_grows_is_told" requests::pile_up,
        Others "refused" "requests::more_than_it_can_answer_is_told" requests::are_refused,
        Others "late" "requests::passed_deadlines_are_told" requests::expire,
        Others "failing" "requests::runs_that_break_are_told" requests::fail,
        Others "infeasible" "requests::an_objective_that_cannot_be_kept_is_told" requests::have_no_chance,
        Others "hangs" "requests::samples_that_wait_behind_a_run_without_end_are_told" requests::wait_too_long,
        Others "lost" "instances::an_instance_that_does_not_come_back_is_told" instances::are_lost,
        Others "worn" "instances::sessions_that_break_again_and_again_are_told" instances::crash,
        Others "idle" "gpu::one_with_little_to_do_while_requests_are_refused_is_told" gpu::is_idle,
        Others "fallback" "instances::a_gpu_that_is_not_there_is_told" instances::fall_back,
        Others "consumers" "collector::a_collector_that_comes_and_goes_is_told" collector::comes_and_goes,
        Others "refusing" "operator::writes_that_are_refused_are_told" operator::writes_are_refused,
        Nobody "slow" "operator::a_slow_api_server_is_told" operator::falls_behind,
        Nobody "leaderless" "operator::one_that_does_not_lead_is_told" operator::does_not_lead,
        Nobody "forbidden" "operator::rights_that_are_missing_are_told" operator::lacks_a_right,
        Nobody "unseen" "targets::models_that_prometheus_does_not_select_are_told" targets::are_not_selected,
        Nobody "all" "rules::each_alert_has_fired_and_ended" rules::all_were_tried,
    ];
    let apart = || Ok(rules::times_are_divided()?);
    trials.insert(0, Trial::test("rules::times_are_divided_and_nothing_else", apart));
    trials
}

fn trial<Test>(fixture: &'static Fixture, beside: Beside, namespace: &'static str, name: &str, test: Test) -> Trial
where
    Test: AsyncFnOnce(&Space) -> Outcome + Send + 'static,
{
    Trial::test(name, move || Ok(fixture.run(beside, namespace, test)?))
}
