//! The rules, as data.

mod basics;
mod cuts;
mod data;
mod errors;
mod idempotency;
mod listing;
mod looks;
mod moves;
mod names;
mod removal;
mod secrecy;
mod sleep;
mod updates;
mod values;
mod watching;

use std::fmt;

use futures::future::BoxFuture;
use provisioner_core::types::SecretSupport;

use crate::{Ability, Outcome, Profile, Subject};

/// One rule of the contract.
pub struct Rule {
    /// The rule as a sentence.
    pub name: &'static str,
    /// Which of the numbered rules of [`Provisioner`](provisioner_core::Provisioner) it belongs to, 1 to 14; 0 for what
    /// the trait says beside them.
    pub section: u8,
    /// Whether it can be tried on this backend; if not, why.
    pub needs: fn(&Profile) -> Result<(), String>,
    /// Tries it.
    pub run: fn(Subject) -> BoxFuture<'static, Outcome>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.section, self.name)
    }
}

macro_rules! rules {
    ($($section:literal $module:ident :: $name:ident, $needs:expr;)*) => {
        &[$(Rule {
            name: stringify!($name),
            section: $section,
            needs: $needs,
            run: |subject| Box::pin($module::$name(subject)),
        }),*]
    };
}

/// Every rule, by section.
#[rustfmt::skip]
pub const RULES: &[Rule] = rules! {
    0 basics::capabilities_are_constant, nothing;
    0 basics::validate_names_the_field, nothing;
    0 basics::validate_and_capabilities_ask_nobody, to_refuse_or_count;
    0 basics::instances_are_kept_apart_as_capabilities_tell, |profile| profile.needs(&[Ability::Isolation]);
    0 basics::maintain_plans_without_acting_and_hurts_nothing, nothing;
    1 moves::a_verb_returns_at_once_and_never_waits_for_readiness, a_slow_spec;
    1 moves::what_a_verb_answers_tells_incarnation_and_generation, nothing;
    1 moves::a_verb_on_what_is_absent_is_absent_and_makes_nothing, nothing;
    2 idempotency::any_verb_repeated_ends_in_the_same_state_with_one_thing, nothing;
    2 idempotency::sixteen_of_a_verb_at_once_end_with_one_thing, nothing;
    2 idempotency::whatever_ran_at_once_the_verb_that_comes_last_wins, nothing;
    3 updates::create_on_what_exists_brings_it_to_the_newer_spec, nothing;
    3 updates::resume_wakes_with_the_spec_of_its_target, nothing;
    3 updates::an_older_generation_is_conflict_and_the_newer_one_stays, nothing;
    3 updates::of_many_generations_at_once_the_newest_stays, conditional_writes;
    3 updates::a_spec_changed_while_asleep_is_applied_at_wake_and_wakes_nothing, nothing;
    3 updates::what_an_outsider_changed_is_undone_by_the_next_spec, |profile| profile.needs(&[Ability::Change, Ability::Environment]);
    3 updates::any_verb_may_follow_any_other, nothing;
    3 updates::what_cannot_be_changed_in_place_is_conflict_naming_the_field, nothing;
    3 updates::a_verb_on_one_instance_leaves_the_others_alone, nothing;
    3 values::hostile_but_legal_values_arrive_byte_for_byte, |profile| profile.needs(&[Ability::Environment]);
    3 values::names_and_sizes_at_their_limits_are_taken, nothing;
    4 cuts::a_verb_cut_at_any_await_point_and_repeated_converges, nothing;
    4 cuts::another_backend_on_the_same_provider_takes_up_what_was_cut, another_backend;
    4 cuts::a_verb_whose_answer_was_lost_and_repeated_converges, nothing;
    4 cuts::a_verb_whose_answer_comes_late_and_repeated_converges, nothing;
    4 cuts::a_verb_whose_effect_comes_late_and_repeated_converges, nothing;
    4 cuts::a_late_call_of_an_older_generation_changes_nothing, nothing;
    4 cuts::a_cancelled_verb_ends_soon_and_repeated_converges, nothing;
    5 sleep::what_sleeps_uses_no_compute, |profile| profile.needs(&[Ability::Sight]);
    5 sleep::data_outlives_sleep, |profile| profile.needs(&[Ability::Notes]);
    5 sleep::data_outlives_updates_and_repeated_verbs, |profile| profile.needs(&[Ability::Notes]);
    5 sleep::what_runs_answers_at_its_endpoint, |profile| profile.needs(&[Ability::Ask]);
    5 sleep::only_what_runs_has_an_endpoint, nothing;
    6 removal::destroy_of_absent_succeeds, nothing;
    6 removal::destroy_from_any_state_leaves_nothing, nothing;
    6 cuts::a_half_made_incarnation_is_destroyed_without_a_trace, nothing;
    6 removal::absent_is_said_only_when_nothing_is_there, |profile| profile.needs(&[Ability::Sight]);
    6 removal::what_blocks_a_removal_is_named, |profile| profile.needs(&[Ability::Block]);
    6 removal::destroy_works_from_id_incarnation_and_data_alone, nothing;
    6 data::data_is_deleted_when_told, nothing;
    6 data::retained_data_is_listed_as_data_with_its_id, nothing;
    6 data::retained_data_is_taken_up_by_a_later_instance_of_the_tenant, nothing;
    6 data::retained_data_is_refused_to_another_tenant, nothing;
    6 data::data_in_use_is_given_to_nobody_and_not_deleted, nothing;
    6 data::delete_data_removes_and_of_absent_succeeds, nothing;
    6 data::create_on_missing_data_is_refused_and_makes_nothing, nothing;
    6 data::data_deleted_behind_our_back_is_missed_and_never_blank, |profile| profile.needs(&[Ability::DeleteData]);
    7 looks::observe_of_what_is_not_there_is_absent, nothing;
    7 looks::what_could_not_be_looked_at_is_never_absent, to_refuse;
    7 looks::within_the_settling_time_nothing_is_known, reads_that_lag;
    7 looks::observe_works_from_id_and_incarnation_alone, nothing;
    7 looks::observe_many_answers_in_the_order_of_its_targets, nothing;
    7 looks::what_an_outsider_deleted_is_absent_and_can_be_made_again, |profile| profile.needs(&[Ability::Delete]);
    7 looks::what_an_outsider_stopped_does_not_run, |profile| profile.needs(&[Ability::Stop]);
    7 looks::reads_change_nothing, nothing;
    7 looks::what_is_used_is_told_of_what_runs_alone_and_rises, nothing;
    8 listing::list_yields_every_instance_as_it_is, nothing;
    8 listing::what_list_yields_is_enough_to_remove_what_the_store_forgot, nothing;
    8 listing::two_control_planes_do_not_see_each_other, nothing;
    8 listing::two_control_planes_do_not_touch_each_other, nothing;
    8 listing::two_hundred_are_listed_in_pages_while_others_come_and_go, nothing;
    9 watching::watch_yields_the_id_of_what_changes, a_watch_and_a_striker;
    9 watching::watch_yields_nothing_of_another_control_plane, a_watch_and_a_striker;
    9 watching::without_watch_the_stream_is_empty, no_watch;
    9 watching::losing_events_costs_no_truth, nothing;
    10 errors::errors_say_kind_retry_effect_operation_and_instance, nothing;
    10 errors::customer_messages_leak_no_internals, nothing;
    10 errors::a_throttled_verb_says_when_to_come_back_and_does_nothing, |profile| profile.needs(&[Ability::Throttle]);
    10 errors::without_capacity_nothing_is_made_and_it_goes_on_when_there_is_room, |profile| profile.needs(&[Ability::Capacity]);
    10 errors::without_rights_nothing_is_touched, |profile| profile.needs(&[Ability::Rights]);
    10 errors::a_provider_that_cannot_be_reached_is_told_as_such_and_caught_up_with, |profile| profile.needs(&[Ability::Unreachable]);
    10 errors::errors_carry_the_providers_code_and_request_id, |profile| profile.needs(&[Ability::Rights, Ability::Codes]);
    10 errors::a_verb_on_a_provider_that_hangs_returns_by_its_deadline, |profile| profile.needs(&[Ability::Hang]);
    11 secrecy::a_secret_is_resolved_through_the_context_for_each_start, resolved_secrets;
    11 secrecy::a_missing_secret_is_an_error_that_names_it_and_does_nothing, resolved_secrets;
    11 secrecy::secret_values_appear_nowhere, resolved_secrets;
    11 secrecy::native_secrets_do_not_pass_through_the_context, native_secrets;
    11 secrecy::secrets_are_refused_where_they_are_not_taken, no_secrets;
    12 names::names_are_a_function_of_control_plane_and_incarnation, |profile| profile.needs(&[Ability::Name]);
    12 names::another_incarnation_is_another_thing, nothing;
    13 names::identity_is_stable_and_not_empty, nothing;
    14 moves::an_instance_that_died_stays_down_until_a_verb_is_called, a_killer_and_no_restarts;
    14 moves::what_the_provider_starts_again_is_as_it_was, a_killer_and_restarts;
    14 moves::a_start_that_fails_is_told_with_a_reason, a_broken_spec;
    14 moves::a_refused_call_is_not_retried_by_the_backend, |profile| profile.needs(&[Ability::Throttle, Ability::Calls]);
};

// What rules need

fn unless(fits: bool, reason: &str) -> Result<(), String> {
    if fits { Ok(()) } else { Err(reason.to_owned()) }
}

fn nothing(_: &Profile) -> Result<(), String> {
    Ok(())
}

fn to_refuse(profile: &Profile) -> Result<(), String> {
    let ways = [Ability::Unreachable, Ability::Throttle];
    let able = ways.iter().any(|ability| profile.can(*ability));
    if able { Ok(()) } else { profile.needs(&[Ability::Rights]) }
}

fn to_refuse_or_count(profile: &Profile) -> Result<(), String> {
    let ways = [Ability::Hang, Ability::Rights, Ability::Throttle, Ability::Unreachable, Ability::Calls];
    let able = ways.iter().any(|ability| profile.can(*ability));
    if able { Ok(()) } else { profile.needs(&[Ability::Calls]) }
}

fn a_slow_spec(profile: &Profile) -> Result<(), String> {
    unless(profile.slow.is_some(), "the profile has no spec that is slow to be ready")
}

fn a_broken_spec(profile: &Profile) -> Result<(), String> {
    unless(profile.broken.is_some(), "the profile has no spec that never gets to run")
}

fn another_backend(profile: &Profile) -> Result<(), String> {
    unless(profile.reopen.is_some(), "the profile cannot make another backend on the same provider")
}

fn conditional_writes(profile: &Profile) -> Result<(), String> {
    unless(profile.capabilities().conditional_writes, "its capabilities say that writes are not conditional")
}

fn reads_that_lag(profile: &Profile) -> Result<(), String> {
    unless(!profile.capabilities().settling.is_zero(), "its capabilities say that reads never lag")
}

fn a_watch_and_a_striker(profile: &Profile) -> Result<(), String> {
    unless(profile.capabilities().watch, "its capabilities say that there is no watch")?;
    profile.needs(&[watching::striking(profile)])
}

fn a_killer_and_no_restarts(profile: &Profile) -> Result<(), String> {
    unless(!profile.capabilities().restarts, "its capabilities say that the provider starts by itself what died")?;
    profile.needs(&[Ability::Kill])
}

fn a_killer_and_restarts(profile: &Profile) -> Result<(), String> {
    unless(profile.capabilities().restarts, "its capabilities say that the provider starts nothing by itself")?;
    profile.needs(&[Ability::Kill])
}

fn no_watch(profile: &Profile) -> Result<(), String> {
    unless(!profile.capabilities().watch, "its capabilities say that there is a watch")
}

fn resolved_secrets(profile: &Profile) -> Result<(), String> {
    let resolved = profile.capabilities().secrets == SecretSupport::Resolved;
    unless(resolved, "its capabilities say that secrets are not resolved by the backend")
}

fn native_secrets(profile: &Profile) -> Result<(), String> {
    let native = profile.capabilities().secrets == SecretSupport::Native;
    unless(native, "its capabilities say that secrets are not resolved by the provider")
}

fn no_secrets(profile: &Profile) -> Result<(), String> {
    unless(profile.capabilities().secrets == SecretSupport::None, "its capabilities say that it takes secrets")
}
