//! What speaks against going on is noticed wherever it can still be acted on, by an operator that
//! looks only where it is told to.

use super::asked::asked;
use super::{drive, drive_in, everything, obliging, pod, spec};
use crate::broker::{Binding, Counts};
use crate::decide::{decide, effects};
use crate::effect::Effect;
use crate::observation::{BrokerView, Job, Observation, Owner, Pod};
use crate::phase::{CutStep, Phase, Reached, RestoreStep, State, SwitchStep};
use crate::spec::{Settings, Spec};
use crate::step::Step;
use crate::time::Time;

/// What becomes of `state` when `spoil` has happened to the broker.
fn spoilt(state: &State, spoil: impl FnOnce(&mut BrokerView)) -> Phase {
    let mut seen = everything(&state.phase);
    spoil(seen.broker.as_mut().expect("a broker"));
    let seen = asked(&state.phase, seen);
    let soon = Time(state.since.0 + 1);
    decide(&spec(), &Settings::default(), state, &seen, soon).state.phase
}

/// The states on the way forward that are given up for `reason`.
fn given_up(reason: &str, spoil: impl Fn(&mut BrokerView)) -> Vec<Phase> {
    let (states, _) = drive(None);
    let mut found = Vec::new();
    for state in states.iter().filter(|state| state.phase != Phase::Pending) {
        if let Phase::Unwinding { failure, .. } = spoilt(state, &spoil) {
            assert_eq!(failure.reason, reason, "{:?}", state.phase);
            found.push(state.phase.clone());
        }
    }
    found
}

/// The checkpoint is taken, and the source is not on its way out.
fn between_checkpoint_and_commit(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::Transferring { .. }
            | Phase::Restoring { .. }
            | Phase::Replaying { .. }
            | Phase::Finalizing { step: SwitchStep::Open(_) | SwitchStep::Overlap(_), .. }
    )
}

fn forward(wanted: impl Fn(&Phase) -> bool) -> Vec<Phase> {
    let (states, _) = drive(None);
    states.into_iter().map(|state| state.phase).filter(wanted).collect()
}

#[test]
fn a_late_message_takes_the_checkpoint_with_it() {
    let late = |broker: &mut BrokerView| broker.s1 = Some(Counts { ready: 1, consumers: 0 });
    assert_eq!(given_up("LateDelivery", late), forward(between_checkpoint_and_commit));
    let (states, _) = drive(None);
    for state in &states {
        let at = &state.phase;
        let quiet = matches!(
            at,
            Phase::Checkpointing {
                step: CutStep::Quiesce(_) | CutStep::Arm { .. } | CutStep::Freeze { .. },
                ..
            }
        );
        // The source is still there to take it: once more.
        let recalled =
            matches!(spoilt(state, late), Phase::Checkpointing { step: CutStep::Recall(_), .. });
        assert_eq!(recalled, quiet, "{at:?}");
    }
}

#[test]
fn a_source_that_was_cut_off_may_have_strayed() {
    let cut_off = |broker: &mut BrokerView| broker.connected = Some(false);
    assert_eq!(given_up("ConnectionLost", cut_off), forward(between_checkpoint_and_commit));
}

/// Its owner puts a fresh process in its place, which wakes on `Q`.
#[test]
fn a_source_that_has_an_owner_is_missed_until_the_switch() {
    let owned = |phase: &Phase| {
        let mut seen = obliging(phase);
        if let Some(source) = seen.source.as_mut() {
            source.owner = Owner::Deployment { replica_set: "rs".into(), deployment: "d".into() };
        }
        seen
    };
    let (states, _) = drive_in(None, &owned);
    let lost = |state: &State, spoil: fn(&mut Option<Pod>)| {
        let mut seen = owned(&state.phase);
        seen.source.get_or_insert_with(|| pod("source", "worker-1", "c1"));
        spoil(&mut seen.source);
        match decide(&spec(), &Settings::default(), state, &seen, state.since).state.phase {
            Phase::Unwinding { failure, .. } => failure.reason == "SourceLost",
            _ => false,
        }
    };
    let restarted: fn(&mut Option<Pod>) = |source| *source = Some(pod("source", "worker-1", "c9"));
    let goes: [fn(&mut Option<Pod>); 2] =
        [|source| *source = None, |source| source.as_mut().expect("there").terminating = true];
    let mut missed = 0;
    for state in &states {
        let at = &state.phase;
        let copied = between_checkpoint_and_commit(at) || matches!(at, Phase::Checkpointing { .. });
        let replace = matches!(at, Phase::Finalizing { step: SwitchStep::Replace(None), .. });
        assert_eq!(lost(state, restarted), copied || replace, "{}", at.step());
        for gone in goes {
            assert_eq!(lost(state, gone), copied, "{}", at.step());
        }
        missed += u32::from(copied);
    }
    assert!(missed > 10, "{missed}");
}

#[test]
fn nobody_is_replaced_by_a_target_that_consumes_nothing() {
    let (states, _) = drive(None);
    let overlap = |s: &&State| s.phase.step() == Step::Overlap;
    let state = states.iter().find(overlap).expect("reached");
    let settings = Settings::default();
    let next = |primary: Option<Counts>, after: u64| {
        let mut seen = obliging(&state.phase);
        seen.broker.as_mut().expect("a broker").primary = primary;
        decide(&spec(), &settings, state, &seen, Time(state.since.0 + after)).state.phase.step()
    };
    let consumed = |consumers| Some(Counts { ready: 0, consumers });
    assert_eq!(next(consumed(1), settings.overlap_ms), Step::Replace);
    assert_eq!(next(consumed(0), settings.overlap_ms), Step::Overlap);
    assert_eq!(next(None, settings.overlap_ms), Step::Overlap);
    assert_eq!(next(consumed(0), settings.deadlines.switch + 1), Step::UndoTarget);
}

#[test]
fn a_deletion_before_the_commit_point_is_a_reason_of_its_own() {
    let spec = Spec { deleted: true, ..spec() };
    let (states, _) = drive(None);
    let reasons: Vec<String> = states
        .iter()
        .filter_map(|state| {
            let seen = obliging(&state.phase);
            let next = decide(&spec, &Settings::default(), state, &seen, state.since).state;
            match next.phase {
                Phase::Unwinding { failure, .. } => Some(failure.reason),
                _ => None,
            }
        })
        .collect();
    assert!(reasons.len() > 10 && reasons.iter().all(|reason| reason == "Deleted"), "{reasons:?}");
}

#[test]
fn a_second_consumer_takes_what_is_the_targets() {
    let crowd = |broker: &mut BrokerView| broker.primary = Some(Counts { ready: 0, consumers: 2 });
    let wanted = |phase: &Phase| {
        between_checkpoint_and_commit(phase) && !matches!(phase, Phase::Transferring { .. })
    };
    let mut found = given_up("ForeignConsumer", crowd);
    // Before cut B it is a foreign consumer, too.
    found.retain(|phase| !matches!(phase, Phase::Checkpointing { .. }));
    assert_eq!(found, forward(wanted));
}

#[test]
fn a_binding_that_is_none_of_ours_is_noticed_until_cut_b() {
    let bind = |broker: &mut BrokerView| {
        broker.bindings.get_or_insert_default().push(Binding::plain("other"));
    };
    let wanted = |phase: &Phase| {
        matches!(
            phase,
            Phase::Checkpointing {
                step: CutStep::Install | CutStep::Empty { .. } | CutStep::CutB { .. },
                ..
            }
        )
    };
    assert_eq!(given_up("ForeignBinding", bind), forward(wanted));
}

#[test]
fn nothing_is_done_without_a_look_at_the_broker() {
    let (states, _) = drive(None);
    for state in &states {
        let blind = Observation { broker: None, acted: None, ..everything(&state.phase) };
        let decision = decide(&spec(), &Settings::default(), state, &blind, state.since);
        let careless = state.phase == Phase::Pending || state.phase.is_final();
        let wanted = effects(&spec(), &state.phase);
        if careless {
            assert_eq!(decision.effects, wanted);
        } else if decision.state == *state && !wanted.is_empty() {
            assert_eq!((decision.effects, decision.wake), (vec![], Some(100)), "{:?}", state.phase);
        }
        let sighted = Observation { acted: None, ..everything(&state.phase) };
        let decision = decide(&spec(), &Settings::default(), state, &sighted, state.since);
        if decision.state == *state {
            assert_eq!(decision.effects, wanted, "{:?}", state.phase);
        }
        let acted = Observation { broker: None, ..everything(&state.phase) };
        let decision = decide(&spec(), &Settings::default(), state, &acted, state.since);
        if decision.state == *state {
            assert_eq!(decision.effects, [], "done already: {:?}", state.phase);
        }
    }
}

#[test]
fn how_far_the_handoff_had_come_decides_about_the_way_back() {
    let (states, _) = drive(None);
    for state in &states {
        let mut wish = spec();
        wish.abort = true;
        let seen = everything(&state.phase);
        let next = decide(&wish, &Settings::default(), state, &seen, state.since).state.phase;
        let Phase::Unwinding { reached, .. } = next else { continue };
        let wanted = match &state.phase {
            Phase::Checkpointing { step: CutStep::Install, .. } => Reached::Installed,
            Phase::Checkpointing {
                step: CutStep::CutA | CutStep::Divert { .. } | CutStep::Empty { .. },
                ..
            } => Reached::CutA,
            _ => Reached::CutB,
        };
        assert_eq!(reached, wanted, "{:?}", state.phase);
    }
}

#[test]
fn the_queue_is_fed_through_the_gate_before_its_own_bindings_go() {
    let (states, _) = drive(None);
    let install = states
        .iter()
        .find(|state| matches!(state.phase, Phase::Checkpointing { step: CutStep::Install, .. }));
    let state = install.expect("reached");
    let names: Vec<&str> = effects(&spec(), &state.phase).iter().map(Effect::name).collect();
    assert_eq!(
        names,
        [
            &["pre-pull"][..],
            &["declare-exchange"; 3],
            &["declare-side-queue"; 3],
            &["declare-waiting-queue"],
            &["bind-queue"; 4],
            &["bind-exchange", "unbind-queue"],
        ]
        .concat()
    );
}

#[test]
fn the_target_is_created_once() {
    let (states, _) = drive(None);
    let beside = states
        .iter()
        .find(|state| matches!(state.phase, Phase::Restoring { step: RestoreStep::Beside, .. }));
    let state = beside.expect("reached");
    let successor =
        Observation { own: false, acted: None, target: None, ..everything(&state.phase) };
    let decision = decide(&spec(), &Settings::default(), state, &successor, state.since);
    let Phase::Unwinding { failure, .. } = decision.state.phase else { panic!("created again") };
    assert_eq!(failure.reason, "TargetLost");
}

#[test]
fn a_source_that_is_about_to_go_is_asked_for_afresh() {
    let (forward, _) = drive(None);
    let going = |state: &&State| crate::decide::interest(&state.phase).going;
    let steps: Vec<&str> = forward.iter().filter(going).map(|s| s.phase.step().name()).collect();
    assert_eq!(steps, ["finalizing/replace"]);
}

#[test]
fn nothing_is_decided_before_what_is_to_be_done_is_done() {
    let (forward, _) = drive(None);
    let mut steps = 0;
    for state in forward.iter().filter(|state| state.phase != Phase::Pending) {
        let todo = effects(&spec(), &state.phase);
        let mut seen = everything(&state.phase);
        seen.acted = None;
        let soon = Time(state.since.0 + 1);
        let next = decide(&spec(), &Settings::default(), state, &seen, soon);
        if !todo.is_empty() {
            assert_eq!((&next.state.phase, next.effects), (&state.phase, todo));
            steps += 1;
        }
    }
    assert!(steps > 10, "{steps}");
}

#[test]
fn a_transfer_job_that_somebody_deletes_is_created_again() {
    let (states, _) = drive(None);
    let carried = states.iter().find(|state| matches!(state.phase, Phase::Transferring { .. }));
    let state = carried.expect("reached");
    let todo = |acted, job: Option<Job>, after| {
        let seen = Observation { acted, job, ..everything(&state.phase) };
        decide(&spec(), &Settings::default(), state, &seen, Time(state.since.0 + after)).effects
    };
    let acted = Some(state.since);
    assert_eq!(todo(acted, None, 1_999), []);
    assert_eq!(todo(acted, None, 2_000), [Effect::CreateJob]);
    assert_eq!(todo(acted, Some(Job::Running), 2_000), []);
    let again = Some(Time(state.since.0 + 2_000));
    assert_eq!(todo(again, None, 3_999), [], "it is not seen at once");
}
