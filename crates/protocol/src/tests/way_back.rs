//! What each step of the way back insists on, and to the millisecond how long.

use super::asked::asked;
use super::gates::set;
use super::{drive, everything, pod, spec};
use crate::broker::Binding;
use crate::decide::decide;
use crate::observation::{Heir, Observation, Pod, Trouble};
use crate::phase::{Failure, Phase, PhaseName, Plan, Reached, State, Undo};
use crate::spec::Settings;
use crate::time::Time;

type Spoil = fn(&mut Observation);

/// A migration that has reached `reached` and is at `step` of its way back.
fn back(reached: Reached, step: &Undo, alone: bool) -> State {
    let (states, _) = drive(None);
    let state = states.iter().find(|state| state.phase.name() == PhaseName::Transferring);
    let state = state.expect("reached");
    let plan = state.phase.plan().expect("a plan").clone();
    let failure = Failure::new("Aborted", "the user wants it");
    let during = PhaseName::Transferring;
    let phase = Phase::Unwinding { plan, failure, during, reached, alone, step: step.clone() };
    state.go(phase, state.since)
}

/// Nobody consumes anything, nothing waits anywhere, the target is gone and the source lives.
fn quiet(state: &State) -> Observation {
    let mut seen = everything(&state.phase);
    (seen.acted, seen.target, seen.heir) = (Some(state.since), None, None);
    for queue in ["Q", "S1", "S2", "park", "park2"] {
        set(&mut seen, queue, 0, 0);
    }
    seen.broker.as_mut().expect("a broker").bindings = Some(Vec::new());
    seen
}

fn go(state: &State, waited: u64, spoil: impl FnOnce(&mut Observation)) -> State {
    let mut seen = quiet(state);
    spoil(&mut seen);
    let now = Time(state.since.0 + waited);
    decide(&spec(), &Settings::default(), state, &asked(&state.phase, seen), now).state
}

/// Where `state` goes after `waited` milliseconds: a step, the step itself again, the end, or
/// nowhere.
fn next(state: &State, waited: u64, spoil: impl FnOnce(&mut Observation)) -> String {
    let next = go(state, waited, spoil);
    match &next.phase {
        _ if next == *state => "waits".to_owned(),
        phase if *phase == state.phase => "again".to_owned(),
        Phase::Unwinding { step, .. } => {
            let text = format!("{step:?}");
            text.chars().take_while(|c| c.is_alphanumeric()).collect()
        }
        phase => phase.name().as_str().to_owned(),
    }
}

fn without_source(seen: &mut Observation) {
    seen.source = None;
}

fn bound(seen: &mut Observation, source: &str) {
    seen.broker.as_mut().expect("a broker").bindings = Some(vec![Binding::plain(source)]);
}

const OBEY: u64 = 30_000;
const LINGER: u64 = 5_000;
const EBB: u64 = 100;

#[test]
fn the_target_is_proved_gone_first() {
    let rows: [(Reached, Spoil, &str); 17] = [
        (Reached::Installed, |_| {}, "Remove"),
        (Reached::Installed, without_source, "Remove"),
        (Reached::CutA, |_| {}, "WorkOff"),
        (Reached::CutA, without_source, "Refeed"),
        (Reached::CutA, |o| (without_source(o), o.heir = Some(heir(true))).0, "Heir"),
        (Reached::CutB, without_source, "Heir"),
        (Reached::CutB, |_| {}, "Regather"),
        (Reached::Rest, |_| {}, "Regather"),
        (Reached::Parked, |_| {}, "Return"),
        (Reached::Hopped, |_| {}, "Clear"),
        (Reached::Hopped, without_source, "Clear"),
        // The broker has not noticed yet that the target is gone.
        (Reached::CutB, |o| (set(o, "Q", 0, 1), set(o, "S1", 0, 1)).0, "waits"),
        (Reached::CutB, |o| (set(o, "Q", 0, 1), set(o, "S2", 0, 1)).0, "waits"),
        (Reached::CutB, |o| (set(o, "Q", 0, 1), set(o, "park", 0, 1)).0, "waits"),
        // It is the source, which has forgotten where it was told to be.
        (Reached::CutB, |o| set(o, "Q", 0, 1), "Regather"),
        (Reached::CutB, |o| set(o, "Q", 0, 2), "waits"),
        (Reached::CutB, |o| o.broker = None, "waits"),
    ];
    for (reached, spoil, expected) in rows {
        let state = back(reached, &Undo::Target, false);
        assert_eq!(next(&state, 0, spoil), expected, "from {reached:?}");
        let there = |o: &mut Observation| {
            spoil(o);
            o.target = Some(Pod { ours: true, ..pod("target", "worker-2", "c2") });
        };
        assert_eq!(next(&state, 1_000_000, there), "waits", "{reached:?}, the target is there");
    }
}

#[test]
fn each_step_goes_on_only_when_its_promise_is_true() {
    use Reached::{CutA, CutB, Parked, Rest};
    let rows: [(Reached, Undo, u64, Spoil, &str); 52] = [
        (CutA, Undo::WorkOff, EBB, |o| set(o, "Q", 0, 1), "Divert"),
        (CutA, Undo::WorkOff, EBB - 1, |o| set(o, "Q", 0, 1), "waits"),
        (CutA, Undo::WorkOff, EBB, |o| set(o, "Q", 1, 1), "waits"),
        (CutA, Undo::WorkOff, EBB, |o| set(o, "Q", 1, 0), "Fetch"),
        (CutA, Undo::WorkOff, OBEY - 1, |o| set(o, "Q", 1, 1), "waits"),
        (CutA, Undo::WorkOff, OBEY, |o| set(o, "Q", 1, 1), "again"),
        (CutA, Undo::WorkOff, EBB, without_source, "Heir"),
        (CutA, Undo::Fetch, 0, |o| set(o, "Q", 0, 1), "WorkOff"),
        (CutA, Undo::Fetch, 0, |_| {}, "waits"),
        (CutA, Undo::Divert, 0, |o| set(o, "S1", 0, 1), "Refeed"),
        (CutA, Undo::Divert, 0, |o| (set(o, "S1", 0, 1), set(o, "Q", 0, 1)).0, "waits"),
        (CutA, Undo::Divert, 0, |_| {}, "waits"),
        (CutA, Undo::Divert, OBEY, |_| {}, "again"),
        (CutB, Undo::Regather, EBB, |o| set(o, "S1", 0, 1), "Continue"),
        (CutB, Undo::Regather, EBB - 1, |o| set(o, "S1", 0, 1), "waits"),
        (CutB, Undo::Regather, EBB, |o| set(o, "S1", 1, 1), "waits"),
        (CutB, Undo::Regather, EBB, |_| {}, "waits"),
        (Rest, Undo::Regather, EBB, |o| set(o, "S1", 0, 1), "Settle"),
        (CutB, Undo::Continue, 0, |o| set(o, "S2", 0, 1), "Unfeed"),
        (CutB, Undo::Continue, 0, |_| {}, "waits"),
        (CutB, Undo::Continue, 0, without_source, "Heir"),
        (CutB, Undo::Unfeed, LINGER, |_| {}, "Purge"),
        (CutB, Undo::Unfeed, LINGER - 1, |_| {}, "waits"),
        (CutB, Undo::Unfeed, LINGER, |o| o.broker.as_mut().unwrap().bindings = None, "waits"),
        (CutB, Undo::Purge, 0, |_| {}, "Refeed"),
        (CutB, Undo::Sweep, 0, |_| {}, "Unfeed"),
        (CutB, Undo::Refeed, 0, |_| {}, "Settle"),
        (CutB, Undo::Settle, EBB, |o| set(o, "S2", 0, 1), "Return"),
        (CutB, Undo::Settle, EBB - 1, |o| set(o, "S2", 0, 1), "waits"),
        (CutB, Undo::Settle, EBB, |o| set(o, "S2", 1, 1), "waits"),
        (CutB, Undo::Settle, 0, |o| set(o, "S2", 1, 0), "Rework"),
        (CutB, Undo::Settle, 0, |o| set(o, "S1", 1, 0), "waits"),
        (CutA, Undo::Settle, 0, |o| set(o, "S1", 1, 0), "Rework"),
        (Rest, Undo::Settle, 0, |o| set(o, "S1", 1, 0), "Rework"),
        (CutB, Undo::Settle, OBEY, |o| set(o, "S2", 1, 1), "waits"),
        (CutB, Undo::Return, LINGER, |o| set(o, "Q", 0, 1), "Remove"),
        (CutB, Undo::Return, LINGER - 1, |o| set(o, "Q", 0, 1), "waits"),
        (CutB, Undo::Return, 0, |_| {}, "waits"),
        (CutB, Undo::Return, LINGER, without_side_queue, "Remove"),
        (CutA, Undo::Return, LINGER, |o| (set(o, "Q", 0, 1), set(o, "S1", 0, 1)).0, "waits"),
        (CutB, Undo::Return, LINGER, |o| (set(o, "Q", 0, 1), set(o, "S2", 0, 1)).0, "waits"),
        (CutB, Undo::Return, 0, |o| (set(o, "Q", 0, 1), set(o, "S2", 1, 0)).0, "Rework"),
        (CutB, Undo::Return, OBEY, |_| {}, "again"),
        (CutB, Undo::Rework, 0, |o| set(o, "S2", 0, 1), "Settle"),
        (CutB, Undo::Rework, 0, |_| {}, "waits"),
        (CutB, Undo::Rework, 0, without_source, "Heir"),
        (CutB, Undo::MoveRest, 0, |o| set(o, "S2", 1, 0), "again"),
        (CutB, Undo::MoveRest, 0, |_| {}, "Remove"),
        (Parked, Undo::Return, 0, |o| set(o, "Q", 0, 1), "Remove"),
        (Parked, Undo::Return, 0, |o| (set(o, "Q", 0, 1), set(o, "park", 0, 1)).0, "waits"),
        (Parked, Undo::Return, 0, |o| (set(o, "Q", 0, 1), set(o, "park2", 0, 1)).0, "waits"),
        (Parked, Undo::Return, 0, without_source, "Heir"),
    ];
    for (reached, step, waited, spoil, expected) in rows {
        let state = back(reached, &step, false);
        assert_eq!(next(&state, waited, spoil), expected, "{reached:?} {step:?} after {waited} ms");
    }
}

#[test]
fn in_mode_park_the_source_must_be_back() {
    let state = back(Reached::Parked, &Undo::Return, false);
    assert_eq!(next(&state, OBEY - 1, |_| {}), "waits");
    assert_eq!(next(&state, OBEY, |_| {}), "again");
}

/// The broker takes a dead process for alive until it misses its heartbeats: the order that it held
/// comes after ours, and whoever obeys it consumes a queue that is to be deleted.
#[test]
fn who_comes_in_the_way_of_the_end_is_sent_back() {
    let rows: [(Reached, bool, u64, Spoil, &str); 8] = [
        (Reached::CutB, false, OBEY, refused, "Return"),
        (Reached::Parked, false, OBEY, refused, "Return"),
        (Reached::CutB, false, OBEY - 1, refused, "waits"),
        (Reached::Installed, false, OBEY, refused, "waits"),
        (Reached::CutB, true, OBEY, refused, "waits"),
        (Reached::CutB, false, OBEY, |o| (refused(o), without_source(o)).0, "waits"),
        (Reached::CutB, false, OBEY, |o| o.acted = None, "waits"),
        (Reached::CutB, false, OBEY, |o| (refused(o), o.acted = Some(Time(0))).0, "waits"),
    ];
    for (reached, alone, waited, spoil, expected) in rows {
        let state = back(reached, &Undo::Remove, alone);
        assert_eq!(next(&state, waited, spoil), expected, "{reached:?} after {waited} ms, {alone}");
    }
}

fn refused(seen: &mut Observation) {
    let message = "queue S2 still has 1 consumer(s)".to_owned();
    seen.acted = None;
    seen.trouble = Some(Trouble { reason: "InUse".into(), message, permanent: false });
}

fn without_side_queue(seen: &mut Observation) {
    set(seen, "Q", 0, 1);
    seen.broker.as_mut().expect("a broker").s2 = None;
}

#[test]
fn it_is_said_what_is_waited_for() {
    for (step, said) in
        [(Undo::WorkOff, "work off"), (Undo::Regather, "work off"), (Undo::Divert, "obey")]
    {
        let state = back(Reached::CutA, &step, false);
        let mut seen = quiet(&state);
        set(&mut seen, "Q", 1, 1);
        let seen = asked(&state.phase, seen);
        let waiting = decide(&spec(), &Settings::default(), &state, &seen, state.since).waiting;
        assert!(waiting.contains(said), "{step:?}: {waiting}");
    }
}

#[test]
fn where_nobody_is_left_the_operator_moves_the_rest_itself() {
    let rows: [(Undo, u64, Spoil, &str); 5] = [
        (Undo::Purge, 0, without_source, "Refeed"),
        (Undo::Settle, LINGER, without_source, "MoveRest"),
        (Undo::Settle, LINGER - 1, |o| set(o, "S2", 1, 0), "waits"),
        (Undo::Refeed, 0, without_source, "Settle"),
        (Undo::Unfeed, LINGER, without_source, "Purge"),
    ];
    for (step, waited, spoil, expected) in rows {
        let state = back(Reached::CutB, &step, true);
        assert_eq!(next(&state, waited, spoil), expected, "{step:?} after {waited} ms");
    }
}

#[test]
fn the_end_is_when_the_queue_is_bound_as_it_was() {
    let state = back(Reached::CutB, &Undo::Remove, false);
    assert_eq!(next(&state, 0, |o| bound(o, "app.fanout")), "Failed");
    assert_eq!(next(&state, OBEY, |o| bound(o, "other")), "waits");
    assert_eq!(next(&state, 0, |o| (bound(o, "other"), without_source(o)).0), "waits");
    assert_eq!(next(&state, 0, |o| o.broker.as_mut().unwrap().bindings = None), "waits");
}

#[test]
fn a_feed_past_the_gate_is_unbound_and_kept_in_mind() {
    let state = back(Reached::CutB, &Undo::Unfeed, false);
    let plan = |state: &State| -> Plan { state.phase.plan().expect("a plan").clone() };
    let (names, before) = (plan(&state).names, plan(&state).bindings);
    let found = go(&state, LINGER, |o| bound(o, "other"));
    assert_eq!(plan(&found).bindings, [before.clone(), vec![Binding::plain("other")]].concat());
    assert_eq!(next(&state, LINGER, |o| bound(o, "app.fanout")), "again");
    assert_eq!(plan(&go(&state, LINGER, |o| bound(o, "app.fanout"))).bindings, before);
    for ours in [&names.both, &names.gate] {
        assert_eq!(next(&state, LINGER, |o| bound(o, ours)), "Purge", "it is the migration's");
    }
}

fn heir(listens: bool) -> Heir {
    Heir { pod: "consumer-1".into(), uid: "heir".into(), container_id: "c9".into(), listens }
}

#[test]
fn an_heir_must_listen_and_is_waited_for_only_so_long() {
    let limit = Settings::default().deadlines.heir;
    let rows: [(Undo, &str); 5] = [
        (Undo::WorkOff, "Refeed"),
        (Undo::Rework, "MoveRest"),
        (Undo::Return, "Remove"),
        (Undo::Regather, "Sweep"),
        (Undo::Continue, "Sweep"),
    ];
    for (resume, alone) in rows {
        let state = back(Reached::CutB, &Undo::Heir(Box::new(resume.clone())), false);
        for deaf in [None, Some(heir(false))] {
            assert_eq!(next(&state, limit - 1, |o| o.heir.clone_from(&deaf)), "waits");
            assert_eq!(next(&state, limit, |o| o.heir.clone_from(&deaf)), alone, "{resume:?}");
        }
        let after = go(&state, 0, |o| o.heir = Some(heir(true)));
        let Phase::Unwinding { plan, step, reached, alone: false, .. } = after.phase else {
            panic!("{resume:?}: {:?}", after.phase)
        };
        assert_eq!(
            (step, reached),
            (resume, Reached::CutB),
            "a target may have consumed the queue"
        );
        let named = (plan.source_pod, plan.source_uid, plan.source_container_id);
        assert_eq!(named, ("consumer-1".into(), "heir".into(), "c9".into()));
    }
}

#[test]
fn no_target_has_consumed_the_queue_before_the_checkpoint() {
    for (during, resume, expected) in [
        (PhaseName::Checkpointing, Undo::Regather, Reached::Rest),
        (PhaseName::Checkpointing, Undo::Continue, Reached::CutB),
        (PhaseName::Replaying, Undo::Regather, Reached::CutB),
    ] {
        let mut state = back(Reached::CutB, &Undo::Heir(Box::new(resume)), false);
        if let Phase::Unwinding { during: at, .. } = &mut state.phase {
            *at = during;
        }
        let after = go(&state, 0, |o| o.heir = Some(heir(true))).phase;
        assert!(matches!(after, Phase::Unwinding { reached, .. } if reached == expected));
    }
}

#[test]
fn a_source_that_restarts_or_goes_has_lost_its_way() {
    let rows: [Spoil; 4] = [
        without_source,
        |o| o.source.as_mut().unwrap().terminating = true,
        |o| o.source.as_mut().unwrap().statuses.get_mut("app").unwrap().id = "c9".into(),
        |o| o.source.as_mut().unwrap().statuses.get_mut("app").unwrap().running = false,
    ];
    for spoil in rows {
        let state = back(Reached::CutB, &Undo::Settle, false);
        assert_eq!(next(&state, 0, spoil), "Heir");
    }
}
