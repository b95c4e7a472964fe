//! The operator's clock is set back, or another operator's is behind.

use super::asked::asked;
use super::*;

fn at(state: &State, seen: &Observation, now: Time) -> crate::decide::Decision {
    decide(&spec(), &Settings::default(), state, &asked(&state.phase, seen.clone()), now)
}

#[test]
fn nothing_waits_for_an_instant_that_is_to_come() {
    let (states, _) = drive(None);
    let (back, _) = drive(states.iter().position(|s| s.phase.name() == PhaseName::Replaying));
    for state in states.iter().chain(&back).filter(|state| !state.phase.is_final()) {
        let now = Time(0);
        let seen = Observation { acted: None, ..obliging(&state.phase) };
        let set = at(state, &seen, now);
        let step = state.phase.step();
        assert_eq!(set.state.phase.step(), step);
        assert_eq!((set.state.since, set.state.phase_since), (now, now), "{step}");
        if set.state != *state {
            assert_eq!((set.effects.is_empty(), set.wake), (true, Some(0)), "{step}");
        }
        assert_ne!(at(&set.state, &seen, now).waiting, set.waiting, "{step}: once");
        let much_later = Time(3_600_000);
        let seen = Observation { acted: Some(now), ..seen };
        assert_ne!(at(&set.state, &seen, much_later).state, set.state, "{step} goes on");
    }
}

#[test]
fn an_effect_that_was_done_later_than_now_is_done_again() {
    let (states, _) = drive(None);
    let state = states.iter().find(|s| s.phase.name() == PhaseName::Replaying).expect("reached");
    let now = Time(state.since.0 + 1);
    let early = Observation { acted: Some(Time(now.0 + 1)), ..obliging(&state.phase) };
    let decision = at(state, &early, now);
    assert_eq!(decision.state, State { since: now, ..state.clone() });
    assert_eq!(decision.wake, Some(0));
}
