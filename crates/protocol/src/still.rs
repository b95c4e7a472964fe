//! Steps 5 and 6 of the handoff in mode `Replay`: the source stands still for its checkpoint, and goes on by itself
//! should nobody tell it to.

use crate::broker::{Counts, Emptiness, Order};
use crate::control::{Control, Role};
use crate::decide::Next;
use crate::effect::Effect;
use crate::observation::{BrokerView, Observation};
use crate::phase::{CutStep, Cuts, Failure, Phase, Plan, State};
use crate::remove::delete_queue;
use crate::spec::Settings;
use crate::time::Time;

/// Wake-up in milliseconds: messages wait for us.
const HOT: u64 = 5;

/// `START_REPLAY{S2}` to the source, should nobody be there to tell it: where the checkpoint would be, there
/// is nothing else to do.
pub(crate) fn wake(plan: &Plan) -> Effect {
    let control = Control::StartReplay { queue: plan.names.s2.clone(), role: Role::Source };
    let waits_in = Some(plan.names.wake.clone());
    Effect::Order(Order { waits_in, ..Order::new(&plan.source_pod, control) })
}

/// The order that wakes the source is taken away, if there may be one.
pub(crate) fn disarm(plan: &Plan) -> Option<Effect> {
    (!plan.names.wake.is_empty()).then(|| delete_queue(&plan.names.wake))
}

/// The source stands still on a queue that is never fed, and the broker has proved that it has
/// acknowledged everything. S1 has no consumer from here on: whatever comes late stays visible.
pub(crate) fn quiesced(
    plan: &Plan,
    cuts: Cuts,
    broker: &BrokerView,
    since: Time,
    now: Time,
    to: impl Fn(CutStep) -> Next,
) -> Next {
    let parked = broker.park.is_some_and(|counts| counts.consumers == 1);
    match broker.s1 {
        Some(Counts { consumers: 0, ready }) if parked && ready > 0 => to(CutStep::Recall(cuts)),
        Some(Counts { consumers: 0, .. })
            if parked && broker.s1_empty == Some(Emptiness::Proved) =>
        {
            // What an earlier version has installed has no such queue.
            let armed = (plan.wake_after_ms > 0).then_some(now);
            to(CutStep::Arm { cuts: Cuts { armed, ..cuts }, quiesced: since })
        }
        _ => Next::Wait(
            HOT,
            format!("pod {} to acknowledge what it holds of {}", plan.source_pod, plan.names.s1),
        ),
    }
}

/// The source stands still, and the order that wakes it waits: nobody has told it to go on, and nobody will
/// within the next seconds.
pub(crate) fn armed(
    plan: &Plan,
    cuts: Cuts,
    quiesced: Time,
    broker: &BrokerView,
    now: Time,
    to: impl Fn(CutStep) -> Next,
) -> Next {
    if !in_time(plan, cuts, now) {
        return woken(plan);
    }
    if !stands_still(broker) {
        return to(CutStep::Recall(cuts));
    }
    if asleep(cuts, broker) {
        return to(CutStep::Freeze { cuts, quiesced });
    }
    Next::Wait(
        HOT,
        format!("the order that wakes pod {} in queue {}", plan.source_pod, plan.names.wake),
    )
}

/// Since when the source stands still.
pub(crate) struct Stands {
    pub(crate) cuts: Cuts,
    pub(crate) quiesced: Time,
    pub(crate) now: Time,
}

/// A checkpoint counts only if nothing has come to S1 since the source left it, and if nobody has woken the
/// source before.
pub(crate) fn frozen(
    plan: &Plan,
    &Stands { cuts, quiesced, now }: &Stands,
    broker: &BrokerView,
    seen: &Observation,
    to: impl Fn(CutStep) -> Next,
) -> Next {
    if !asleep(cuts, broker) {
        return woken(plan);
    }
    match &seen.archive {
        Some(archive) if stands_still(broker) => {
            let cuts = Cuts { armed: None, ..cuts };
            to(CutStep::Continue { cuts, quiesced, archive: archive.clone() })
        }
        None if stands_still(broker) => Next::Wait(HOT, "the kubelet's checkpoint".to_owned()),
        _ if in_time(plan, cuts, now) => to(CutStep::Recall(cuts)),
        _ => woken(plan),
    }
}

/// The kubelet, or its runtime, can't be asked for the checkpoint, and the source stands still meanwhile: it is
/// made whole, for nobody knows how long that will last.
pub(crate) fn held_up(
    state: &State,
    settings: &Settings,
    seen: &Observation,
    now: Time,
) -> Option<Failure> {
    let Phase::Checkpointing { step: CutStep::Freeze { .. }, .. } = &state.phase else {
        return None;
    };
    let trouble = seen.trouble.as_ref().filter(|_| seen.acted.is_none())?;
    let (reason, message) = (&trouble.reason, &trouble.message);
    let why = format!("{message}; its source does not stand still any longer for that");
    (now.since(state.since) >= settings.kubelet_ms).then(|| Failure::new(reason, why))
}

/// The source is where nothing comes, and nothing has come to where it was.
fn stands_still(broker: &BrokerView) -> bool {
    let parked = broker.park.is_some_and(|counts| counts.consumers == 1);
    parked && broker.s1 == Some(Counts::default())
}

/// The order that wakes the source has not left its queue, or was never laid out.
fn asleep(cuts: Cuts, broker: &BrokerView) -> bool {
    cuts.armed.is_none() || broker.wake.is_some_and(|counts| counts.ready == 1)
}

/// What was laid out since then waits still, or was taken away before its time.
fn in_time(plan: &Plan, cuts: Cuts, now: Time) -> bool {
    cuts.armed.is_none_or(|armed| now.since(armed) < plan.wake_after_ms)
}

/// Whatever the source has applied since is in no queue of the copy's, or in none of its own.
fn woken(plan: &Plan) -> Next {
    let (pod, after) = (&plan.source_pod, plan.wake_after_ms / 1_000);
    Next::Fail(Failure::new(
        "SourceWoken",
        format!(
            "pod {pod} stood still for its checkpoint, and went on by itself after {after} s in which nobody \
             told it to; was the operator cut off from the broker or the API server? Create the migration \
             again"
        ),
    ))
}

pub(crate) fn recalled(
    plan: &Plan,
    cuts: Cuts,
    broker: &BrokerView,
    now: Time,
    to: impl Fn(CutStep) -> Next,
) -> Next {
    if !in_time(plan, cuts, now) {
        return woken(plan);
    }
    if broker.s1.is_some_and(|counts| counts.consumers == 1) {
        return to(CutStep::Drain(Cuts { armed: None, ..cuts }));
    }
    Next::Wait(HOT, format!("pod {} to go back to {}", plan.source_pod, plan.names.s1))
}
