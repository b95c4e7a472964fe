//! The invariants of `docs/handoff.md` at the end of a run.

use std::collections::BTreeSet;

use shadow_broker::memory::core::{Destination, Serial};
use shadow_protocol::names::control_queue;
use shadow_protocol::phase::{Phase, PhaseName, State};

use crate::application::Ledger;
use crate::message::Message;
use crate::scenario::OwnerKind;
use crate::world::{QUEUE, SOURCE, World};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Completed, Failed, or where it stopped.
    pub phase: Option<PhaseName>,
    /// Why it failed, if it did.
    pub reason: Option<String>,
    /// When, in simulated milliseconds since the world began.
    pub at: u64,
    /// Calls that the operator made.
    pub calls: u32,
    /// The effects that were carried out, by name.
    pub effects: BTreeSet<&'static str>,
    /// What must not be, a sentence each.
    pub violations: Vec<String>,
    /// What happened, if it was kept.
    pub log: Vec<String>,
}

impl Verdict {
    pub(crate) fn of(mut world: World) -> Self {
        let mut violations = std::mem::take(&mut world.violations);
        let state: Option<State> = world.state().cloned();
        let phase = state.as_ref().map(|state| &state.phase);
        if violations.is_empty() {
            violations.extend(unfinished(phase));
            violations.extend(left_over(&world, phase));
            violations.extend(lost_or_worse(&world, phase));
        }
        let reason = match phase {
            Some(Phase::Failed { failure, .. }) => Some(failure.reason.clone()),
            _ => None,
        };
        Self {
            phase: phase.map(Phase::name),
            reason,
            at: world.now(),
            calls: world.calls(),
            effects: std::mem::take(&mut world.performed),
            violations,
            log: std::mem::take(&mut world.log).into_lines(),
        }
    }
}

/// Invariant 6: Completed or rolled back.
fn unfinished(phase: Option<&Phase>) -> Option<String> {
    match phase {
        Some(phase) if phase.is_final() => None,
        Some(phase) => Some(format!("it ended in {}", phase.name().as_str())),
        None => Some("nothing was ever stored".to_owned()),
    }
}

/// Invariant 6: nothing of the migration is left, and `Q` is fed as before.
fn left_over(world: &World, phase: Option<&Phase>) -> Vec<String> {
    let mut found = Vec::new();
    let survivors: Vec<String> =
        world.pods.iter().filter(|pod| !pod.gone).map(|pod| control_queue(&pod.name)).collect();
    for name in world.broker.queue_names().chain(world.broker.exchange_names()) {
        // A dead application's control queue is its own affair.
        let control = name.starts_with("ms2m.control.");
        let target = phase.and_then(Phase::plan).map(|plan| control_queue(&plan.target_pod));
        let dead = target.as_deref() == Some(&**name) && !world.forgiven;
        let ours = name.contains("ms2m.") && (!control || dead);
        if ours && !survivors.iter().any(|it| **it == **name) {
            found.push(format!("{name} is left over"));
        }
    }
    let bindings = world.broker.bindings(&Destination::Queue(QUEUE.into()));
    if bindings.len() != 1 {
        found.push(format!("{QUEUE} is bound by {bindings:?}"));
    }
    if !world.bereaved {
        let alive = world.pods.iter().filter(|pod| pod.alive()).count();
        if alive != 1 {
            found.push(format!("{alive} pods are left"));
        }
    }
    found
}

/// Invariants 1 to 3, of the copy that survives.
fn lost_or_worse(world: &World, phase: Option<&Phase>) -> Vec<String> {
    let survivors: Vec<(&str, &Ledger)> = world
        .pods
        .iter()
        .filter(|pod| pod.alive())
        .filter_map(|pod| {
            let process = world.processes[pod.process?].as_ref()?;
            Some((pod.name.as_str(), &process.memory.ledger))
        })
        .collect();
    let (name, ledger) = match survivors.as_slice() {
        [(name, ledger)] => (*name, (*ledger).clone()),
        // A bare pod that died by a fault stays dead: what is left waits in its queue.
        [] if world.bereaved && world.scenario.owner == OwnerKind::Bare => {
            let mut ledger = world.base.clone();
            for (message, count, _) in world.broker.ready(QUEUE) {
                if let Message::Data(first) = message {
                    ledger.apply((*first, count));
                }
            }
            (QUEUE, ledger)
        }
        several => {
            return vec![format!("{} copies survive", several.len())];
        }
    };
    let mut found = Vec::new();
    let completed = matches!(phase, Some(Phase::Completed { .. }));
    if !world.bereaved && !sequential(world) && completed != (name != SOURCE) {
        found.push(format!("{name} survives, completed: {completed}"));
    }
    // What a process took that had strayed from its queue, and died, is in no copy's queue.
    // Neither is what it owed to a queue that it had left.
    let careless = world.strayed || world.scenario.habits.late_acks > 0;
    let strayed_and_died = world.bereaved && careless;
    if world.forgiven || strayed_and_died {
        return found;
    }
    let mut missing = ledger.gaps.clone();
    for (publisher, (last, published)) in (0..).zip(ledger.last.iter().zip(&world.published)) {
        let first = Serial { publisher, sequence: last + 1 };
        missing.insert((first, published.saturating_sub(*last)));
    }
    // What the broker forgot with a restart, before anybody had it confirmed, is nobody's.
    let lost = missing.without(&world.unconfirmed).count();
    if lost > 0 {
        found.push(format!("{lost} messages are lost to {name}: {ledger:?}"));
    }
    // A fresh process wakes before it is told where the rest is, and messages that were moved by
    // nobody's order may be there twice: at least once, as for any crash.
    let Ledger { duplicated, mut reordered, .. } = ledger;
    if world.flooded || world.overtaken {
        // What trails longer than the ebb is overtaken, and so is what is returned to a queue.
        reordered = 0;
    }
    let excused = world.bereaved || world.intruded || world.strayed;
    if duplicated + reordered > 0 && !excused {
        found.push(format!("{duplicated} duplicated, {reordered} reordered at {name}"));
    }
    found
}

fn sequential(world: &World) -> bool {
    world.scenario.owner == OwnerKind::StatefulSet
}
