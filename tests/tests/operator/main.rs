//! The operator on a real node, with exactly the permissions that the chart gives it: from `kubectl apply` to predictions, and
//! whatever may go wrong between.
//!
//! One main brings up what the tests share when the first of them needs it, and takes it down again. Every test has a namespace of its
//! own, so most run side by side; those that end operators run alone, after the others. Times are printed and never asserted.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]
#![expect(clippy::expect_used, reason = "a test that panics has failed, which is what is meant")]

mod access;
mod audit;
mod autoscaler;
mod crowd;
mod failures;
mod fixture;
mod foreign;
mod gpu;
mod load;
mod models;
mod monitoring;
mod operator;
mod outcome;
mod refused;
mod repair;
mod rest;
mod restart;
mod rollout;
mod scaling;
mod serving;
mod space;
mod traffic;
mod web;

use std::process::ExitCode;

use fixture::{Beside, Fixture, Outcome};
use libtest_mimic::{Arguments, Trial};
use space::Space;

/// The cluster's name.
const CLUSTER: &str = "test-operator";

/// Tests at once. They wait more than they work; beyond this, they wait for the two processors of a small machine.
const THREADS: usize = 8;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let fixture: &'static Fixture = Box::leak(Box::new(Fixture::new()));
    let conclusion = libtest_mimic::run(&arguments, trials(fixture));
    let ended = fixture.end(conclusion.has_failed());
    if conclusion.has_failed() || ended.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// In the order in which they begin: what takes long first, and what runs alone after the others. Those apart wait for each other, so
/// they stand between the others and keep no more than one thread waiting; half of them come last, beside those that run alone, for
/// they have a cluster of their own.
fn trials(fixture: &'static Fixture) -> Vec<Trial> {
    use Beside::{Apart, Nobody, Others};
    let left_out = Fixture::reason_to_leave_out();
    if let Some(reason) = left_out {
        fixture::tell(&format!("left out: all tests of the operator: {reason}"));
    }
    macro_rules! trials {
        ($($beside:ident $namespace:literal $name:literal $test:path,)*) => {
            vec![$(trial(fixture, $beside, $namespace, $name, $test).with_ignored_flag(left_out.is_some())),*]
        };
    }
    let mut all = trials![
        Others "rest" "rest::at_rest_nothing_is_written_but_the_lease" rest::nothing_is_written,
        Others "photo" "serving::a_photo_is_classified_through_the_service" serving::classifies_a_photo,
        Apart "rest-shared" "monitoring::at_rest_nothing_is_written" monitoring::rests,
        Others "traffic" "rollout::a_changed_model_disturbs_no_client_and_the_old_one_comes_back" rollout::disturbs_no_client,
        Others "wave" "scaling::replicas_follow_the_load_up_and_down" scaling::follows_the_load,
        Others "mute" "scaling::without_numbers_nothing_is_taken_away" scaling::holds_without_numbers,
        Others "scarce" "scaling::a_device_that_is_not_to_be_had_winds_nothing_up" scaling::waits_for_a_device,
        Others "broken-gpu" "gpu::a_broken_change_on_the_one_gpu_is_taken_back" gpu::a_broken_change_is_taken_back,
        Others "deployments" "repair::edits_of_deployments_are_undone" repair::undoes_edits_of_deployments,
        Apart "without" "monitoring::without_the_definitions_a_model_says_so_and_only_enabled_is_a_failure" monitoring::says_what_is_missing,
        Apart "scaled-by-hpa" "autoscaler::in_mode_hpa_there_is_one_that_is_repaired_told_of_and_gone_with_the_mode" autoscaler::follows_the_mode,
        Others "services" "repair::edits_of_services_are_undone" repair::undoes_edits_of_services,
        Others "one-gpu" "gpu::a_change_on_the_one_gpu_ends_by_itself" gpu::a_change_ends_by_itself,
        Others "two-on-gpu" "gpu::a_second_model_waits_for_the_gpu_of_the_first" gpu::the_second_waits_for_the_first,
        Apart "share" "monitoring::definitions_that_come_later_are_picked_up_and_models_share_what_is_made" monitoring::is_picked_up_and_shared,
        Apart "handed-over" "autoscaler::from_mode_to_mode_there_are_never_fewer_replicas" autoscaler::hands_over,
        Others "deleted" "repair::deleted_children_are_made_again" repair::remakes_the_deleted,
        Others "config-maps" "repair::edits_of_config_maps_are_undone" repair::undoes_edits_of_config_maps,
        Others "ends" "rollout::a_pod_that_ends_costs_no_request" rollout::loses_nothing_when_a_pod_ends,
        Apart "repaired" "monitoring::shared_objects_that_are_edited_or_deleted_come_back" monitoring::is_repaired,
        Others "foreign" "foreign::what_belongs_to_another_is_left_alone_and_named" foreign::is_left_alone,
        Others "rolled-back" "rollout::a_broken_change_is_taken_back" rollout::rolls_back,
        Others "recreated" "rollout::with_recreate_there_are_never_two_revisions" rollout::recreates,
        Others "restarted" "rollout::the_restart_annotation_is_a_new_revision" rollout::restarts_on_demand,
        Others "checksum" "failures::a_wrong_checksum_is_told_and_clears" failures::wrong_checksum,
        Others "not-found" "failures::a_missing_file_is_told_and_clears" failures::missing_file,
        Others "no-onnx" "failures::a_file_that_is_no_model_is_told_and_clears" failures::no_onnx_file,
        Others "no-image" "failures::a_missing_image_is_told_and_clears" failures::missing_image,
        Others "crash" "failures::a_crashing_server_is_told_and_clears" failures::crash,
        Others "memory" "failures::too_little_memory_is_told_and_clears" failures::too_little_memory,
        Others "no-claim" "failures::a_missing_claim_is_told_and_clears" failures::missing_claim,
        Others "no-secret" "failures::a_missing_secret_is_told_and_clears" failures::missing_secret,
        Others "quota" "failures::an_exceeded_quota_is_told_and_clears" failures::exceeded_quota,
        Others "quota-surge" "failures::a_quota_without_room_for_two_pods_lets_the_old_one_go_first" failures::quota_without_room_for_two,
        Others "several" "serving::several_models_in_one_pod_all_answer" serving::serves_several_models,
        Others "scaled" "serving::kubectl_scale_makes_more_pods_and_fewer" serving::is_scaled,
        Others "heirs" "repair::what_outlives_its_model_is_the_next_one_s" repair::takes_over_what_is_left,
        Others "removed" "serving::nothing_is_left_of_a_deleted_model" serving::leaves_nothing_behind,
        Others "phoenix" "serving::a_model_comes_back_right_after_its_deletion" serving::comes_back_after_deletion,
        Others "suspended" "serving::a_suspended_model_has_no_pods_until_it_is_resumed" serving::is_suspended,
        Others "events" "serving::events_tell_what_happened" serving::tells_in_events,
        Others "restricted" "foreign::models_are_served_where_restricted_is_enforced" foreign::restricted_is_enforced,
        Others "sources" "refused::none_or_two_sources" refused::none_or_two_sources,
        Others "ahead" "refused::what_cannot_be_acted_on_is_named" refused::what_cannot_be_acted_on,
        Others "firm" "refused::what_serves_goes_on_while_a_change_is_refused" refused::what_serves_goes_on,
        Nobody "deep" "refused::what_cannot_be_read_is_refused_and_hides_no_other" refused::what_cannot_be_read,
        Nobody "killed" "restart::a_rollout_survives_killed_operators" restart::killed_in_a_rollout,
        Nobody "upgraded" "restart::an_upgraded_operator_restarts_no_pod" restart::upgraded,
        Nobody "held" "scaling::a_model_that_is_about_to_end_is_scaled_no_more" scaling::lets_go_of_what_ends,
        Nobody "orphan" "scaling::a_leader_that_ends_in_a_spike_takes_nothing_with_it" scaling::survives_its_leader,
        Nobody "pair" "restart::of_two_operators_one_writes_and_the_other_takes_over" restart::two_at_once,
        Apart "switched" "monitoring::what_is_disabled_goes_and_what_is_enabled_comes" monitoring::is_switched,
        Apart "other-scalers" "autoscaler::those_of_others_are_named_and_keep_ours_away" autoscaler::names_the_others,
        Apart "taken" "monitoring::a_shared_object_of_somebody_else_is_left_alone_and_named" monitoring::leaves_the_foreign_alone,
        Apart "told" "monitoring::what_prometheus_refuses_is_told" monitoring::tells_what_prometheus_refuses,
        Apart "crowd" "monitoring::many_models_at_once_cost_few_writes_of_what_they_share" monitoring::writes_little_for_many,
        Apart "detailed" "monitoring::the_operator_tells_of_itself" monitoring::tells_of_itself,
        Apart "keda" "autoscaler::the_kind_of_keda_is_picked_up_later_and_its_object_makes_way" autoscaler::picks_keda_up,
        Apart "gone" "monitoring::definitions_that_are_removed_are_let_go_of" monitoring::lets_go,
    ];
    // The long suite: these take too long for every change.
    if std::env::var_os("ORTOLAN_SCALE_TRIES").is_some() {
        let name = "scaling::a_minute_without_the_api_server_takes_nothing_away";
        all.push(trial(fixture, Nobody, "island", name, scaling::survives_the_api_server));
        let name = "crowd::a_thousand_models_are_looked_at_every_two_seconds";
        all.push(trial(fixture, Nobody, "crowd", name, crowd::is_looked_at));
    }
    all
}

fn trial<Test>(fixture: &'static Fixture, beside: Beside, namespace: &'static str, name: &str, test: Test) -> Trial
where
    Test: AsyncFnOnce(&Space) -> Outcome + Send + 'static,
{
    Trial::test(name, move || Ok(fixture.run(beside, namespace, test)?))
}
