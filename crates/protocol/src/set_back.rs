//! A clock that was set back, or that of another operator which is behind: what lies in the future would be waited
//! for until it comes. It counts as happened now, so that every wait is as long as it must be, and has an end.

use crate::facts::Cuts;
use crate::observation::Observation;
use crate::phase::{CutStep, ParkStep, Phase, State};
use crate::time::Time;

/// The state to store in the place of one that knows instants after `now`.
pub(crate) fn set_back(state: &State, seen: &Observation, now: Time) -> Option<State> {
    let mut state = state.clone();
    let early = seen.acted.is_some_and(|acted| acted > now);
    let mut instants = instants(&mut state.phase);
    instants.push(&mut state.phase_since);
    let mut late = early || state.since > now;
    for instant in instants.into_iter().filter(|instant| **instant > now) {
        *instant = now;
        late = true;
    }
    state.since = now;
    (late && !state.phase.is_final()).then_some(state)
}

/// Whatever is waited for counts from one of these.
fn instants(phase: &mut Phase) -> Vec<&mut Time> {
    match phase {
        Phase::Checkpointing { step, .. } => match step {
            CutStep::Divert { cut_a }
            | CutStep::Empty { cut_a }
            | CutStep::Return { cut_a }
            | CutStep::CutB { cut_a } => vec![cut_a],
            CutStep::Drain(cuts) | CutStep::Recall(cuts) | CutStep::Quiesce(cuts) => of_cuts(cuts),
            CutStep::Arm { cuts, quiesced }
            | CutStep::Freeze { cuts, quiesced }
            | CutStep::Continue { cuts, quiesced, .. } => {
                of_cuts(cuts).into_iter().chain([quiesced]).collect()
            }
            CutStep::Park(ParkStep::Freeze { parked } | ParkStep::Leave { parked, .. }) => {
                vec![parked]
            }
            CutStep::Install | CutStep::CutA | CutStep::Park(_) | CutStep::Alone(_) => Vec::new(),
        },
        Phase::Replaying { taken, progress, .. } => {
            let cuts = taken.cuts.as_mut().map(of_cuts).into_iter().flatten();
            cuts.chain([&mut progress.at]).collect()
        }
        Phase::Transferring { taken, .. }
        | Phase::Restoring { taken, .. }
        | Phase::Finalizing { taken, .. } => {
            taken.cuts.as_mut().map(of_cuts).into_iter().flatten().collect()
        }
        Phase::Pending
        | Phase::Completed { .. }
        | Phase::Unwinding { .. }
        | Phase::Failed { .. } => Vec::new(),
    }
}

fn of_cuts(cuts: &mut Cuts) -> Vec<&mut Time> {
    [&mut cuts.a, &mut cuts.b].into_iter().chain(&mut cuts.armed).collect()
}
