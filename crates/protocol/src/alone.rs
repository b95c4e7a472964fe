//! Phase Checkpointing without a queue: nothing is asked of a broker, and nobody is told anything.
//!
//! Nothing replays what the source does after its checkpoint, so all that can be done before it is
//! done before it, and the source goes as soon as its copy can come (`docs/handoff.md`, "Without a
//! queue"). From the transfer on it is strategy Sequential as ever.

use crate::decide::Next;
use crate::effect::Effect;
use crate::handoff::not_pulled;
use crate::observation::{Interest, Observation};
use crate::phase::{AloneStep, CutStep, Phase, Plan, Taken};
use crate::time::Time;

const HOT: u64 = 5;

pub(crate) fn effects(step: AloneStep) -> Vec<Effect> {
    match step {
        // Two checkpoints at a time would spoil each other.
        AloneStep::Pull => vec![Effect::Lock, Effect::PrePull],
        AloneStep::Freeze => vec![Effect::Checkpoint],
    }
}

pub(crate) fn interest(step: AloneStep) -> Interest {
    Interest { prepull: step == AloneStep::Pull, ..Interest::default() }
}

/// `since` is when the kubelet had answered, and the process was copied before that: at the earliest
/// when the kubelet was asked.
pub(crate) fn step(plan: &Plan, step: AloneStep, seen: &Observation, since: Time) -> Next {
    let plan = plan.clone();
    match step {
        AloneStep::Pull => not_pulled(&plan, seen).unwrap_or_else(|| {
            Next::go(Phase::Checkpointing { plan, step: CutStep::Alone(AloneStep::Freeze) })
        }),
        AloneStep::Freeze => match &seen.archive {
            Some(archive) => Next::go(Phase::Transferring {
                plan,
                taken: Taken {
                    cuts: None,
                    whole_until: Some(Time(since.0.saturating_sub(archive.millis))),
                    archive: archive.clone(),
                    pause_ms: archive.millis,
                },
            }),
            None => Next::Wait(HOT, "the kubelet's checkpoint".to_owned()),
        },
    }
}
