//! What each step of phase Checkpointing insists on, and to the millisecond how long.

use super::asked::asked;
use super::{drive, everything, spec};
use crate::broker::{Counts, Emptiness};
use crate::decide::decide;
use crate::observation::{Observation, Owner, PrePull, Trouble};
use crate::phase::{CutStep, Cuts, Phase, Plan, State};
use crate::spec::Settings;
use crate::time::Time;

type Spoil = fn(&mut Observation);

/// The first word of a step.
fn word(step: &CutStep) -> String {
    let text = format!("{step:?}");
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// The state in which a migration that has reached `name` is.
fn at(name: &str) -> State {
    let (states, _) = drive(None);
    let here = |state: &State| matches!(&state.phase, Phase::Checkpointing { step, .. } if word(step) == name);
    if let Some(found) = states.iter().find(|state| here(state)) {
        return found.clone();
    }
    // These two are gone into only when something comes late.
    let before = at("Drain");
    let Phase::Checkpointing { plan, step: CutStep::Drain(cuts) } = &before.phase else {
        panic!("not there")
    };
    let step = match name {
        "Return" => CutStep::Return { cut_a: cuts.a },
        "Recall" => CutStep::Recall(*cuts),
        _ => panic!("no step {name}"),
    };
    before.go(Phase::Checkpointing { plan: plan.clone(), step }, before.since)
}

/// Where `state` goes after `waited` milliseconds: a step, a phase, a reason, or nowhere.
fn next(state: &State, waited: u64, spoil: Spoil) -> String {
    let mut seen = everything(&state.phase);
    seen.acted = Some(state.since);
    seen.prepull = Some(PrePull::Done);
    spoil(&mut seen);
    let seen = asked(&state.phase, seen);
    let now = Time(state.since.0 + waited);
    let decision = decide(&spec(), &Settings::default(), state, &seen, now);
    if decision.state == *state {
        assert!(!decision.waiting.is_empty() && decision.wake.is_some());
        return "waits".to_owned();
    }
    match &decision.state.phase {
        Phase::Checkpointing { step, .. } => word(step),
        Phase::Unwinding { failure, .. } => failure.reason.clone(),
        phase => phase.name().as_str().to_owned(),
    }
}

pub(super) fn set(seen: &mut Observation, queue: &str, ready: u64, consumers: u32) {
    let broker = seen.broker.as_mut().expect("a broker");
    let counts = Some(Counts { ready, consumers });
    match queue {
        "Q" => broker.primary = counts,
        "S1" => broker.s1 = counts,
        "S2" => broker.s2 = counts,
        "park" => broker.park = counts,
        "wake" => broker.wake = counts,
        _ => broker.park2 = counts,
    }
}

#[test]
fn each_step_goes_on_only_when_its_promise_is_true() {
    let rows: [(&str, u64, Spoil, &str); 56] = [
        ("Install", 0, |_| {}, "CutA"),
        ("CutA", 100, |_| {}, "Divert"),
        ("CutA", 99, |_| {}, "waits"),
        ("CutA", 100, |o| set(o, "Q", 1, 1), "waits"),
        ("Divert", 0, |_| {}, "Empty"),
        ("Divert", 0, |o| set(o, "Q", 0, 1), "waits"),
        ("Divert", 0, |o| set(o, "S1", 0, 0), "waits"),
        ("Empty", 2_000, |_| {}, "CutB"),
        ("Empty", 1_999, |_| {}, "waits"),
        ("Empty", 2_000, unproved, "waits"),
        ("Empty", 1_999, unproved, "waits"),
        ("Empty", 2_000, |o| o.prepull = None, "waits"),
        ("Empty", 2_000, |o| o.prepull = Some(PrePull::Running), "waits"),
        ("Empty", 0, |o| o.prepull = Some(PrePull::Failed("no".into())), "BaseImageUnavailable"),
        ("Empty", 0, |o| set(o, "Q", 1, 0), "Return"),
        ("Empty", 0, |o| set(o, "Q", 0, 1), "ForeignConsumer"),
        ("Return", 0, |o| set(o, "Q", 0, 1), "Divert"),
        ("Return", 0, |o| set(o, "Q", 1, 1), "waits"),
        ("Return", 0, |o| set(o, "Q", 0, 0), "waits"),
        ("CutB", 0, |_| {}, "Drain"),
        ("Drain", 100, |_| {}, "Quiesce"),
        ("Drain", 99, |_| {}, "waits"),
        ("Drain", 100, |o| set(o, "S1", 1, 1), "waits"),
        ("Drain", 100, |o| set(o, "S1", 0, 0), "waits"),
        ("Recall", 0, |_| {}, "Drain"),
        ("Recall", 0, |o| set(o, "S1", 1, 0), "waits"),
        ("Quiesce", 0, |_| {}, "Arm"),
        ("Quiesce", 0, |o| set(o, "park", 0, 0), "waits"),
        ("Quiesce", 0, unproved, "waits"),
        ("Quiesce", 0, |o| set(o, "S1", 0, 1), "waits"),
        ("Quiesce", 0, |o| set(o, "S1", 1, 0), "Recall"),
        ("Quiesce", 0, not_parked_and_late, "waits"),
        ("Arm", 0, |_| {}, "Freeze"),
        ("Arm", 8_000, |_| {}, "Freeze"),
        ("Arm", 20_000, |_| {}, "SourceWoken"),
        ("Arm", 0, |o| set(o, "wake", 0, 0), "waits"),
        ("Arm", 0, |o| set(o, "wake", 2, 0), "waits"),
        ("Arm", 0, |o| set(o, "park", 0, 0), "Recall"),
        ("Arm", 0, |o| set(o, "S1", 1, 0), "Recall"),
        ("Freeze", 0, |_| {}, "Continue"),
        ("Freeze", 20_000, |_| {}, "Continue"),
        ("Freeze", 0, |o| set(o, "wake", 0, 0), "SourceWoken"),
        ("Freeze", 0, |o| set(o, "wake", 2, 0), "SourceWoken"),
        ("Freeze", 0, without_wake, "SourceWoken"),
        ("Freeze", 20_000, |o| set(o, "park", 0, 0), "SourceWoken"),
        ("Freeze", 20_000, |o| set(o, "S1", 1, 0), "SourceWoken"),
        ("Freeze", 0, |o| o.archive = None, "waits"),
        ("Freeze", 0, |o| set(o, "park", 0, 0), "Recall"),
        ("Freeze", 0, not_parked_without_archive, "Recall"),
        ("Freeze", 0, |o| set(o, "S1", 1, 0), "Recall"),
        ("Freeze", 0, |o| set(o, "S1", 0, 1), "Recall"),
        ("Continue", 0, |_| {}, "Transferring"),
        ("Continue", 0, |o| set(o, "S2", 0, 0), "waits"),
        ("Continue", 0, without_source, "Transferring"),
        ("Continue", 0, |o| o.broker = None, "waits"),
        ("Drain", 100, |o| o.broker = None, "waits"),
    ];
    for (step, waited, spoil, expected) in rows {
        let found = next(&at(step), waited, spoil);
        assert_eq!(found, expected, "{step} after {waited} ms");
    }
}

fn without_wake(seen: &mut Observation) {
    seen.broker.as_mut().expect("a broker").wake = None;
}

fn unproved(seen: &mut Observation) {
    let broker = seen.broker.as_mut().expect("a broker");
    let not = Some(Emptiness::Unproved);
    (broker.primary_empty, broker.s1_empty) = (not, not);
}

fn not_parked_and_late(seen: &mut Observation) {
    set(seen, "park", 0, 0);
    set(seen, "S1", 1, 0);
}

fn not_parked_without_archive(seen: &mut Observation) {
    set(seen, "park", 0, 0);
    seen.archive = None;
}

fn without_source(seen: &mut Observation) {
    set(seen, "S2", 0, 0);
    seen.source = None;
}

/// What trails cut A is fetched for as long as the proof may take; after that somebody publishes to
/// the queue past the gate.
#[test]
fn messages_that_keep_coming_past_the_gate_end_the_migration() {
    let state = at("Empty");
    let Phase::Checkpointing { plan, .. } = &state.phase else { panic!("not there") };
    let late = |since: u64| {
        let cut_a = Time(state.since.0 - since);
        let step = CutStep::Empty { cut_a };
        let state = state.go(Phase::Checkpointing { plan: plan.clone(), step }, state.since);
        next(&state, 0, |o| set(o, "Q", 1, 0))
    };
    let proof = Settings::default().deadlines.proof;
    assert_eq!((late(proof).as_str(), late(proof + 1).as_str()), ("Return", "ForeignFeed"));
}

/// The source's container as it should not be, and what that means before its checkpoint and after.
#[test]
fn a_source_that_is_not_the_same_any_more_is_lost() {
    let rows: [(Spoil, &str, bool, bool); 5] = [
        (|_| {}, "", false, false),
        (|o| container(o).id = "c9".into(), "was restarted", true, true),
        (|o| container(o).running = false, "has crashed", true, true),
        (
            |o| o.source.as_mut().expect("a source").terminating = true,
            "is being deleted",
            true,
            true,
        ),
        // A bare pod that is gone leaves the checkpoint as good as ever.
        (|o| o.source = None, "is gone", true, false),
    ];
    for (spoil, why, before, after) in rows {
        for (step, lost) in [("CutA", before), ("Freeze", before), ("Continue", after)] {
            let state = at(step);
            let mut seen = everything(&state.phase);
            spoil(&mut seen);
            let next = decide(&spec(), &Settings::default(), &state, &seen, state.since);
            let failure = match next.state.phase {
                Phase::Unwinding { failure, .. } => Some(failure),
                _ => None,
            };
            assert_eq!(failure.is_some(), lost, "{why} in {step}");
            assert!(failure.is_none_or(|f| f.reason == "SourceLost" && f.message.contains(why)));
        }
    }
}

/// Its owner replaces it, and the fresh process wakes on the queue.
#[test]
fn a_source_with_an_owner_is_lost_after_its_checkpoint_too() {
    let state = at("Continue");
    let Phase::Checkpointing { plan, step } = state.phase.clone() else { panic!("not there") };
    let owner = Owner::Deployment { replica_set: "rs".into(), deployment: "d".into() };
    let plan = Plan { owner, ..plan };
    let state = state.go(Phase::Checkpointing { plan, step }, state.since);
    assert_eq!(next(&state, 0, |o| o.source = None), "SourceLost");
}

fn container(seen: &mut Observation) -> &mut crate::observation::Container {
    let source = seen.source.as_mut().expect("a source");
    source.statuses.get_mut("app").expect("a container")
}

#[test]
fn the_pause_is_counted_from_the_order_to_stand_still() {
    let state = at("Continue");
    let Phase::Checkpointing { plan, step: CutStep::Continue { archive, .. } } = &state.phase
    else {
        panic!("not there")
    };
    let quiesced = Time(state.since.0 - 300);
    let cuts = Cuts { a: Time(1), b: Time(2), armed: None };
    let step = CutStep::Continue { cuts, quiesced, archive: archive.clone() };
    let state = state.go(Phase::Checkpointing { plan: plan.clone(), step }, state.since);
    let seen = everything(&state.phase);
    let now = Time(state.since.0 + 40);
    let next = decide(&spec(), &Settings::default(), &state, &seen, now).state.phase;
    assert_eq!(next.taken().map(|taken| taken.pause_ms), Some(340));
}

#[test]
fn a_kubelet_that_can_t_be_asked_is_not_waited_for_long() {
    let state = at("Freeze");
    let message = "ask the kubelet: connection refused".to_owned();
    let trouble = Trouble { reason: "CheckpointFailed".to_owned(), message, permanent: false };
    let after = |waited: u64, acted: Option<Time>| {
        let seen = everything(&state.phase);
        let seen = Observation { acted, archive: None, trouble: Some(trouble.clone()), ..seen };
        let now = Time(state.since.0 + waited);
        decide(&spec(), &Settings::default(), &state, &seen, now).state.phase
    };
    assert_eq!(after(1_999, None), state.phase);
    assert_eq!(after(2_000, Some(state.since)), state.phase, "it has been asked");
    let Phase::Unwinding { failure, .. } = after(2_000, None) else { panic!("waits") };
    assert_eq!(failure.reason, "CheckpointFailed");
}
