//! The IDs of effects: done again, the same; wanted again, another.

use std::collections::BTreeSet;

use super::{drive, spec};
use crate::decide::effects;
use crate::effect::EffectId;
use crate::phase::State;

/// The IDs of all that `state` wants done.
fn ids(state: &State) -> Vec<EffectId> {
    let spec = spec();
    let count = effects(&spec, &state.phase).len();
    (0..count).map(|place| EffectId::new(&spec.uid, state, place)).collect()
}

#[test]
fn every_effect_of_a_migration_has_an_id_of_its_own() {
    for abort_at in std::iter::once(None).chain((0..20).map(Some)) {
        let (states, _) = drive(abort_at);
        let all: Vec<EffectId> = states.iter().flat_map(ids).collect();
        let different: BTreeSet<&str> = all.iter().map(EffectId::as_str).collect();
        assert_eq!(different.len(), all.len(), "aborted at {abort_at:?}");
    }
}

#[test]
fn a_successor_who_reads_the_state_finds_the_same_ids() {
    let (states, _) = drive(None);
    for state in &states {
        let stored = serde_json::to_value(state).unwrap();
        let read: State = serde_json::from_value(stored).unwrap();
        assert_eq!(ids(&read), ids(state));
    }
}

#[test]
fn a_step_gone_into_anew_has_other_ids() {
    let (states, _) = drive(None);
    for state in &states {
        let again = state.go(state.phase.clone(), state.since);
        assert!(ids(state).iter().all(|id| !ids(&again).contains(id)));
    }
}
