//! Report: the status and the events, from the state and what was seen. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use serde_json::json;
use shadow_api::{HandoffStatus, StatefulMigration, StatefulMigrationStatus};
use shadow_protocol::broker::Totals;
use shadow_protocol::decide::Decision;
use shadow_protocol::observation::{Observation, Owner, Trouble, Turn};
use shadow_protocol::phase::{
    AloneStep, CutStep, FORMAT_VERSION, ParkStep, Phase, PhaseName, Plan, State,
};
use shadow_protocol::spec::{ReplayMode, Strategy};
use shadow_protocol::time::Time;

use crate::clock::{rfc3339, rfc3339_seconds};

/// The status for a decision, on top of the one before.
pub fn status(
    object: &StatefulMigration,
    decision: &Decision,
    seen: &Observation,
) -> StatefulMigrationStatus {
    let state = &decision.state;
    let phase = &state.phase;
    let mut status = object.status.clone().unwrap_or_default();
    status.format_version = Some(FORMAT_VERSION);
    status.observed_generation = object.metadata.generation;
    status.state = serde_json::to_value(state).ok();
    status.phase = Some(phase.name().as_str().to_owned());
    status.phase_timings =
        state.timings.iter().map(|(name, ms)| (name.as_str().to_owned(), seconds(*ms))).collect();
    status.start_time.get_or_insert_with(|| rfc3339(state.since));
    if phase.is_final() {
        status.completion_time.get_or_insert_with(|| rfc3339(state.since));
    }
    if let Some(plan) = phase.plan() {
        status.strategy = Some(match plan.strategy {
            Strategy::ShadowPod => "ShadowPod".to_owned(),
            Strategy::Sequential => "Sequential".to_owned(),
        });
        status.source_node = Some(plan.origin().source_node.clone());
        status.target_pod = Some(plan.target_pod.clone());
        status.target_node = Some(plan.target_node.clone());
        status.container_name = Some(plan.container.clone());
        match &plan.owner {
            Owner::Deployment { deployment, .. } => {
                status.deployment_name = Some(deployment.clone());
            }
            Owner::StatefulSet(set) => status.stateful_set_name = Some(set.clone()),
            Owner::Bare | Owner::Other { .. } => {}
        }
    }
    if let Some(taken) = phase.taken() {
        status.checkpoint_id = taken.archive.path.rsplit('/').next().map(str::to_owned);
    }
    if let Some(image) = phase.image() {
        status.checkpoint_bytes = Some(image.bytes);
    }
    status.handoff = handoff(status.handoff.take(), phase, seen);
    status.message = Some(message(decision, seen));
    status.conditions = conditions(&status.conditions, object, decision, seen);
    status
}

fn seconds(millis: u64) -> String {
    format!("{}.{:02}s", millis / 1_000, millis % 1_000 / 10)
}

fn handoff(
    before: Option<HandoffStatus>,
    phase: &Phase,
    seen: &Observation,
) -> Option<HandoffStatus> {
    let Some(plan) = phase.plan() else { return before };
    let mut handoff = before.unwrap_or_default();
    handoff.mode = Some(match plan.mode {
        ReplayMode::Cutoff => "Replay/Cutoff".to_owned(),
        ReplayMode::Drain => "Replay/Drain".to_owned(),
        ReplayMode::Park => "Park".to_owned(),
        ReplayMode::Alone => "None".to_owned(),
    });
    handoff.reason = Some(plan.mode_reason.clone());
    handoff.bindings = plan
        .origin()
        .bindings
        .iter()
        .map(|b| format!("{} -> {} [{}]", b.source, plan.names.primary, b.routing_key))
        .collect();
    let primary = seen.broker.as_ref().and_then(|broker| broker.primary);
    if matches!(phase.name(), PhaseName::Restoring | PhaseName::Replaying | PhaseName::Finalizing)
        && let Some(counts) = primary
    {
        handoff.lag = Some(counts.ready);
    }
    if let Some(taken) = phase.taken() {
        handoff.pause_millis = Some(taken.pause_ms);
        let cut = |at: Time| shadow_api::CutProof {
            at: Some(rfc3339(at)),
            ready: Some(0),
            unacked: Some(0),
        };
        if let Some(cuts) = taken.cuts {
            handoff.proof.get_or_insert_default().cuts =
                BTreeMap::from([("A".to_owned(), cut(cuts.a)), ("B".to_owned(), cut(cuts.b))]);
        }
    }
    handoff.unreplayed_millis = phase.unreplayed();
    if let Phase::Completed { evidence, taken, .. } = phase
        && !plan.alone()
    {
        let proof = handoff.proof.get_or_insert_default();
        proof.target_restarts = Some(0);
        let names = &plan.names;
        proof.queues.insert(names.primary.clone(), counted(evidence.primary));
        if taken.cuts.is_some() {
            proof.queues.insert(names.s1.clone(), counted(evidence.s1));
            proof.queues.insert(names.s2.clone(), counted(evidence.s2));
        }
    }
    Some(handoff)
}

fn counted(totals: Totals) -> shadow_api::QueueProof {
    shadow_api::QueueProof {
        routed: Some(totals.routed),
        acknowledged: Some(totals.acknowledged),
        redelivered: Some(totals.redelivered),
    }
}

fn message(decision: &Decision, seen: &Observation) -> String {
    match &decision.state.phase {
        Phase::Completed { plan, .. } => took_over(plan, &decision.state.phase),
        Phase::Failed { failure, rolled_back: true } => {
            format!("{}: {}; everything was undone", failure.reason, failure.message)
        }
        Phase::Failed { failure, rolled_back: false } => {
            format!("{}: {}; nothing was changed", failure.reason, failure.message)
        }
        Phase::Unwinding { failure, .. } if decision.waiting.is_empty() => {
            format!("rolling back: {}", failure.message)
        }
        Phase::Unwinding { failure, .. } => {
            format!("rolling back ({}), {}", failure.message, waiting(decision, seen))
        }
        _ if decision.waiting.is_empty() => step_name(&decision.state.phase).to_owned(),
        _ => waiting(decision, seen),
    }
}

/// And what is in the way: after the commit point nothing else says so.
fn waiting(decision: &Decision, seen: &Observation) -> String {
    let waiting = format!("waiting for {}", decision.waiting);
    match &seen.trouble {
        Some(Trouble { reason, message, .. }) => {
            format!("{waiting}; tried again: {reason}: {message}")
        }
        None => waiting,
    }
}

fn took_over(plan: &Plan, phase: &Phase) -> String {
    let done = format!("{} took over on node {}", plan.target_pod, plan.target_node);
    match phase.unreplayed() {
        Some(ms) => {
            format!("{done}; what it did in the {} after its checkpoint is lost", seconds(ms))
        }
        None => done,
    }
}

/// What the user of a pod without a queue should know before it is too late.
pub fn nothing_replays(plan: &Plan) -> Event {
    let pod = &plan.source_pod;
    let note = format!(
        "without messageQueueConfig nothing replays what pod {pod} does between its checkpoint and \
         its end, some seconds later: what changes its state in that time is lost; \
         status.handoff.unreplayedMillis says in the end how long it was"
    );
    event("NothingReplays", note, true)
}

fn step_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Pending => "checking whether the migration can work",
        Phase::Checkpointing { step, .. } => match step {
            CutStep::Install => "putting the gate before the queue",
            CutStep::CutA | CutStep::Divert { .. } => "diverting the feed",
            CutStep::Return { .. } => "working off what came late",
            CutStep::Empty { .. } => "proving the queue empty",
            CutStep::CutB { .. } => "feeding both copies",
            CutStep::Drain(_) | CutStep::Recall(_) | CutStep::Quiesce(_) => "quiescing the source",
            CutStep::Arm { .. } | CutStep::Freeze { .. } | CutStep::Alone(AloneStep::Freeze) => {
                "taking the checkpoint"
            }
            CutStep::Continue { .. } => "letting the source go on",
            CutStep::Park(step) => match step {
                ParkStep::Declare => "preparing the park queues",
                ParkStep::Stop => "parking the source",
                ParkStep::Freeze { .. } => "taking the checkpoint",
                ParkStep::Leave { .. } => "making room for the copy",
            },
            CutStep::Alone(AloneStep::Pull) => "pulling the image on the target node",
        },
        Phase::Transferring { .. } => "sending the checkpoint to the registry",
        Phase::Restoring { .. } => "restoring the checkpoint on the target node",
        Phase::Replaying { .. } => "catching up",
        Phase::Finalizing { .. } => "handing over",
        Phase::Unwinding { .. } | Phase::Completed { .. } | Phase::Failed { .. } => "",
    }
}

/// `Ready`, and `RolledBack` once something went wrong.
fn conditions(
    before: &[Condition],
    object: &StatefulMigration,
    decision: &Decision,
    seen: &Observation,
) -> Vec<Condition> {
    let state = &decision.state;
    let generation = object.metadata.generation;
    let condition = |kind: &str, status: &str, reason: &str, message: String| {
        let old = before.iter().find(|c| c.type_ == kind && c.status == status);
        let at = old.map_or_else(
            || json!(rfc3339_seconds(state.since)),
            |condition| json!(condition.last_transition_time),
        );
        // Built through JSON: the time type of the API library is not ours to name.
        serde_json::from_value::<Condition>(json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": at,
        }))
        .ok()
    };
    let (ready, undone) = match &state.phase {
        Phase::Completed { .. } => {
            (condition("Ready", "True", "Completed", "the target has taken over".into()), None)
        }
        Phase::Failed { failure, rolled_back } => (
            condition("Ready", "False", &failure.reason, failure.message.clone()),
            rolled_back
                .then(|| {
                    let text = "the source works as before, nothing is left".to_owned();
                    condition("RolledBack", "True", &failure.reason, text)
                })
                .flatten(),
        ),
        Phase::Unwinding { failure, .. } => (
            condition("Ready", "False", &failure.reason, failure.message.clone()),
            condition("RolledBack", "False", "RollingBack", failure.message.clone()),
        ),
        Phase::Pending if matches!(seen.turn, Turn::Waits(_)) => {
            (condition("Ready", "False", "Queued", message(decision, seen)), None)
        }
        other => {
            (condition("Ready", "False", other.name().as_str(), step_name(other).into()), None)
        }
    };
    [ready, undone].into_iter().flatten().collect()
}

/// While the source stands still nothing but the protocol's own writes may take time.
pub fn standing_still(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::Checkpointing {
            step: CutStep::Quiesce(_)
                | CutStep::Arm { .. }
                | CutStep::Freeze { .. }
                | CutStep::Continue { .. }
                | CutStep::Park(ParkStep::Stop | ParkStep::Freeze { .. })
                | CutStep::Alone(AloneStep::Freeze),
            ..
        }
    )
}

/// The longest note the API server takes.
const LONGEST_NOTE: usize = 1_000;

/// An event about the migration.
pub fn event(reason: &str, mut note: String, warning: bool) -> Event {
    if note.len() > LONGEST_NOTE {
        note.truncate(note.floor_char_boundary(LONGEST_NOTE));
        note.push('…');
    }
    Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note),
        action: "Migrate".to_owned(),
        secondary: None,
    }
}

/// The events that going from `old` to `new` is worth.
pub fn events(old: &State, new: &State) -> Vec<Event> {
    let mut events = Vec::new();
    match (&old.phase, &new.phase) {
        (_, Phase::Failed { failure, rolled_back: true }) => {
            events.push(event("RolledBack", failure.message.clone(), true));
        }
        (_, Phase::Failed { failure, rolled_back: false }) => {
            events.push(event(&failure.reason, failure.message.clone(), true));
        }
        (Phase::Unwinding { .. }, _) => {}
        (_, Phase::Unwinding { failure, .. }) => {
            let note = format!("rolling back: {}", failure.message);
            events.push(event(&failure.reason, note, true));
        }
        (before, after) if before.name() != after.name() => {
            let note = match after {
                Phase::Completed { plan, .. } => took_over(plan, after),
                other => step_name(other).to_owned(),
            };
            events.push(event(after.name().as_str(), note, false));
        }
        _ => {}
    }
    events
}
