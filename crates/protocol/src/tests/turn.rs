//! A migration that waits for its turn.

use super::*;
use crate::observation::Turn;

const HOUR: Time = Time(3_600_000);

fn waits() -> Observation {
    let turn = Turn::Waits("1 migration goes on, at most 1 at once".into());
    Observation { turn, ..Observation::default() }
}

#[test]
fn nothing_is_done_before_its_turn_and_no_deadline_runs() {
    let state = State::new(Time(0));
    for now in [Time(0), HOUR] {
        let decision = decide(&spec(), &Settings::default(), &state, &waits(), now);
        assert_eq!(decision.state, state);
        assert_eq!(decision.effects, []);
        assert_eq!(decision.waiting, "its turn: 1 migration goes on, at most 1 at once");
        assert!(decision.wake.is_some());
    }
}

#[test]
fn the_deadline_runs_from_its_turn_on() {
    let state = State::new(Time(0));
    let settings = Settings::default();
    let limit = settings.deadlines.preflight;
    let decide = |turn, now| {
        let seen = Observation { turn, ..Observation::default() };
        // The cluster does not answer.
        decide(&spec(), &settings, &state, &seen, Time(now)).state.phase.name()
    };
    let turn = Turn::Since(HOUR);
    assert_eq!(decide(turn.clone(), HOUR.0 + limit), PhaseName::Pending);
    assert_eq!(decide(turn, HOUR.0 + limit + 1), PhaseName::Failed);
    assert_eq!(decide(Turn::default(), limit + 1), PhaseName::Failed);
}

#[test]
fn who_waits_can_be_aborted_and_deleted() {
    let state = State::new(Time(0));
    let aborted = Spec { abort: true, ..spec() };
    let deleted = Spec { deleted: true, ..spec() };
    for (spec, reason) in [(aborted, "Aborted"), (deleted, "Deleted")] {
        let decision = decide(&spec, &Settings::default(), &state, &waits(), HOUR);
        let Phase::Failed { failure, rolled_back: false } = &decision.state.phase else {
            panic!("{decision:?}");
        };
        assert_eq!(failure.reason, reason);
    }
}

#[test]
fn only_pending_waits_for_a_turn() {
    let mut state = State::new(Time(0));
    let decision = decide(&spec(), &Settings::default(), &state, &preflight(), Time(1));
    state = decision.state;
    let seen = Observation { turn: waits().turn, ..obliging(&state.phase) };
    let decision = decide(&spec(), &Settings::default(), &state, &seen, Time(2));
    assert_ne!(decision.state, state);
}

#[test]
fn full_nodes_are_passed_over_and_waited_for() {
    let spec = Spec { target_node: None, ..spec() };
    let state = State::new(Time(0));
    let decide = |seen: &Observation| decide(&spec, &Settings::default(), &state, seen, Time(1));
    let mut seen = preflight();
    checks(&mut seen).nodes.push(node("worker-3"));
    checks(&mut seen).nodes[1].full = true;
    let decision = decide(&seen);
    assert_eq!(decision.state.phase.plan().map(|plan| plan.target_node.as_str()), Some("worker-3"));
    checks(&mut seen).nodes[2].full = true;
    let decision = decide(&seen);
    assert_eq!(
        (&decision.state, decision.waiting.as_str()),
        (&state, "room on a node that takes the pod")
    );
}
