//! Phase Checkpointing in mode `Park`: the source waits, its queue keeps what comes, nothing is
//! replayed. For deep backlogs and for feeds that can't be diverted (`docs/handoff.md`).

use crate::broker::Emptiness;
use crate::broker::Topology;
use crate::decide::{Next, source};
use crate::effect::Effect;
use crate::handoff::{not_pulled, to_source};
use crate::observation::{BrokerView, Interest, Observation};
use crate::phase::{CutStep, ParkStep, Phase, Plan, Taken};
use crate::time::Time;

const HOT: u64 = 5;

pub(crate) fn effects(plan: &Plan, step: &ParkStep) -> Vec<Effect> {
    let names = &plan.names;
    let queue = |name: &str| Effect::Topology(Topology::DeclareSideQueue { name: name.to_owned() });
    match step {
        ParkStep::Declare => vec![Effect::PrePull, queue(&names.park), queue(&names.park2)],
        ParkStep::Stop => vec![to_source(plan, &names.park)],
        ParkStep::Freeze { .. } => vec![Effect::Checkpoint],
        ParkStep::Leave { .. } => vec![to_source(plan, &names.park2)],
    }
}

pub(crate) fn interest(step: &ParkStep) -> Interest {
    let none = Interest::default();
    match step {
        ParkStep::Declare => Interest { prepull: true, primary: true, ..none },
        ParkStep::Stop => Interest { primary: true, park: true, primary_quiet: true, ..none },
        ParkStep::Freeze { .. } => Interest { park: true, ..none },
        ParkStep::Leave { .. } => Interest { park: true, park2: true, ..none },
    }
}

pub(crate) fn step(
    plan: &Plan,
    step: &ParkStep,
    seen: &Observation,
    broker: &BrokerView,
    since: Time,
    now: Time,
) -> Next {
    let to = |step: ParkStep| {
        Next::go(Phase::Checkpointing { plan: plan.clone(), step: CutStep::Park(step) })
    };
    let pod = &plan.source_pod;
    let parked = broker.park.is_some_and(|counts| counts.consumers == 1);
    match step {
        ParkStep::Declare => not_pulled(plan, seen).unwrap_or_else(|| to(ParkStep::Stop)),
        ParkStep::Stop => {
            if parked && left(plan, seen, broker) && broker.primary_quiet == Some(Emptiness::Proved)
            {
                return to(ParkStep::Freeze { parked: since });
            }
            let queue = &plan.names.primary;
            Next::Wait(HOT, format!("pod {pod} to leave {queue} and acknowledge what it holds"))
        }
        ParkStep::Freeze { parked } => match &seen.archive {
            Some(archive) => to(ParkStep::Leave { parked: *parked, archive: archive.clone() }),
            None => Next::Wait(HOT, "the kubelet's checkpoint".to_owned()),
        },
        ParkStep::Leave { parked: since, archive } => {
            let there = broker.park2.is_some_and(|counts| counts.consumers == 1) && !parked;
            if there || source(plan, seen).is_none() {
                let pause_ms = now.since(*since);
                let archive = archive.clone();
                let taken = Taken { cuts: None, whole_until: None, archive, pause_ms };
                return Next::go(Phase::Transferring { plan: plan.clone(), taken });
            }
            Next::Wait(HOT, format!("pod {pod} to make room for its copy"))
        }
    }
}

/// Where others consume `Q`, too, one that has left in the source's stead would look the same in the
/// count.
fn left(plan: &Plan, seen: &Observation, broker: &BrokerView) -> bool {
    let Some(count) = broker.primary.map(|counts| counts.consumers) else { return false };
    if !plan.shared() {
        return count < plan.consumers;
    }
    let named = broker.consumers.as_ref().map(Vec::len);
    let gone = !broker.consumed_by(plan, source(plan, seen));
    gone && count.saturating_add(1) == plan.consumers && named == Some(count as usize)
}
