//! Time, abstracted: it stands still at [`NOW`], and what lies behind grows older by one tick at a
//! time until it is older than anything the protocol waits for.
//!
//! A tick is any length of time, so the protocol is tried with every order of its timers' ends and
//! everything else that happens. Only two things bind the ticks to the world, both measured and
//! both in `docs/handoff.md`: deliveries trail a cut no longer than the ebb, or, as an exception,
//! no longer than what settles.

use shadow_protocol::phase::{CutStep, Cuts, Failure, Phase, PhaseName, Progress, State};
use shadow_protocol::spec::{Deadlines, Settings};
use shadow_protocol::time::Time;

pub const NOW: Time = Time(100);

/// Deliveries trail a cut for so many ticks.
const EBB: u64 = 1;
/// Or, as an exception, for fewer than so many.
const SETTLE: u64 = 2;
/// Older than this, all timers have ended.
pub const OLDEST: u64 = SETTLE + 1;

pub fn settings() -> Settings {
    Settings {
        // Nothing is forgiven: the target has caught up when it is as far as the source.
        pause_budget_ms: 0,
        settle_ms: SETTLE,
        linger_ms: SETTLE,
        ebb_ms: EBB,
        overlap_ms: EBB,
        park_pause_ms: 0,
        statistics_ms: EBB,
        wake_ms: 0,
        kubelet_ms: SETTLE,
        admission: false,
        deadlines: Deadlines {
            preflight: SETTLE,
            broker: SETTLE,
            drain: SETTLE,
            obey: SETTLE,
            proof: SETTLE,
            checkpoint: SETTLE,
            transfer: SETTLE,
            restore: SETTLE,
            heir: SETTLE,
            progress: SETTLE,
            switch: SETTLE - CUTOFF,
        },
    }
}

/// The order that wakes the source waits for so long.
pub const WAKE: u64 = 1;

/// Longest catch-up.
pub const CUTOFF: u64 = 1;

/// One tick passes for a time of which only the first `most` ticks matter.
fn grow_older(time: &mut Time, most: u64) {
    time.0 = (time.0 - 1).max(NOW.0 - most);
}

/// One tick passes for the time when the operator had acted: deadlines don't count from it.
pub fn tick_acted(acted: &mut Time) {
    grow_older(acted, SETTLE);
}

/// One tick passes for what the protocol will look at again.
pub fn tick(state: &mut State) {
    grow_older(&mut state.since, OLDEST);
    match &mut state.phase {
        Phase::Checkpointing { step, .. } => match step {
            CutStep::Divert { cut_a } | CutStep::Empty { cut_a } | CutStep::Return { cut_a } => {
                grow_older(cut_a, OLDEST);
            }
            CutStep::Drain(cuts)
            | CutStep::Recall(cuts)
            | CutStep::Quiesce(cuts)
            | CutStep::Arm { cuts, .. }
            | CutStep::Freeze { cuts, .. }
            | CutStep::Continue { cuts, .. } => {
                grow_older(&mut cuts.b, SETTLE);
                if let Some(armed) = &mut cuts.armed {
                    grow_older(armed, WAKE);
                }
            }
            CutStep::Install
            | CutStep::CutA
            | CutStep::CutB { .. }
            | CutStep::Park(_)
            | CutStep::Alone(_) => {}
        },
        Phase::Replaying { .. } => grow_older(&mut state.phase_since, CUTOFF),
        _ => {}
    }
    if let Some(cuts) = cuts(&mut state.phase) {
        grow_older(&mut cuts.b, SETTLE);
    }
}

fn cuts(phase: &mut Phase) -> Option<&mut Cuts> {
    match phase {
        Phase::Transferring { taken, .. }
        | Phase::Restoring { taken, .. }
        | Phase::Replaying { taken, .. }
        | Phase::Finalizing { taken, .. } => taken.cuts.as_mut(),
        _ => None,
    }
}

/// Whether an order that waits may have waited long enough. The protocol goes on from the steps that look at
/// their clock only when it can't have; from all others at any moment.
pub fn may_wake(state: &State) -> bool {
    match &state.phase {
        Phase::Checkpointing {
            step: CutStep::Arm { cuts, .. } | CutStep::Recall(cuts), ..
        } => cuts.armed.is_none_or(|armed| NOW.since(armed) >= WAKE),
        _ => true,
    }
}

/// Forgets what is stored for the record only, so that situations that go on alike are alike.
pub fn forget(state: &mut State) {
    state.timings.clear();
    state.steps = 0;
    if !matches!(state.phase, Phase::Replaying { .. }) {
        state.phase_since = NOW;
    }
    match &mut state.phase {
        Phase::Checkpointing { step, .. } => match step {
            CutStep::Drain(cuts) | CutStep::Recall(cuts) | CutStep::Quiesce(cuts) => cuts.a = NOW,
            CutStep::Arm { cuts, quiesced }
            | CutStep::Freeze { cuts, quiesced }
            | CutStep::Continue { cuts, quiesced, .. } => {
                (cuts.a, *quiesced) = (NOW, NOW);
            }
            CutStep::CutB { cut_a } => *cut_a = NOW,
            _ => {}
        },
        Phase::Transferring { taken, .. } | Phase::Restoring { taken, .. } => taken.pause_ms = 0,
        Phase::Replaying { target, progress, .. } => {
            target.feed_per_second = 0;
            *progress = Progress { lag: 0, at: NOW };
        }
        Phase::Unwinding { failure, during, .. } => {
            *failure = Failure::new("", "");
            // All that is read of it.
            if *during != PhaseName::Checkpointing {
                *during = PhaseName::Finalizing;
            }
        }
        Phase::Failed { failure, .. } => *failure = Failure::new("", ""),
        _ => {}
    }
}
