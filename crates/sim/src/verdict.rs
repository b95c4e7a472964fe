//! The invariants of `docs/handoff.md` at the end of a run.

use std::collections::BTreeSet;

use serde::Serialize;
use shadow_broker::memory::core::{Destination, Serial};
use shadow_protocol::names::control_queue;
use shadow_protocol::phase::{Phase, PhaseName, State};
use shadow_protocol::step::Step;

use crate::application::Ledger;
use crate::message::{Message, Serials};
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
    /// From which step the stored state went to which.
    pub transitions: BTreeSet<(Step, Step)>,
    /// What must not be, a sentence each.
    pub violations: Vec<String>,
    /// What happened, if it was kept.
    pub log: Vec<String>,
    /// What became of the messages; absent when no single copy survives.
    pub tally: Option<Tally>,
}

/// What became of the messages in the state that survives, whosever fault it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// The surviving pod, or the queue that waits for one.
    pub survivor: String,
    /// Messages published.
    pub published: u64,
    /// Messages applied.
    pub applied: u64,
    /// Messages never applied.
    pub lost: u64,
    /// Messages applied again.
    pub duplicated: u64,
    /// Messages applied after a later one of the same publisher.
    pub reordered: u64,
}

impl Verdict {
    pub(crate) fn of(mut world: World) -> Self {
        let mut violations = std::mem::take(&mut world.violations);
        let state: Option<State> = world.state().cloned();
        let phase = state.as_ref().map(|state| &state.phase);
        if violations.is_empty() {
            violations.extend(unknown(&world.transitions));
            violations.extend(unfinished(phase));
            violations.extend(left_over(&world, phase));
            violations.extend(lost_or_worse(&world, phase));
        }
        let reason = match phase {
            Some(Phase::Failed { failure, .. }) => Some(failure.reason.clone()),
            _ => None,
        };
        let tally = survivor(&world).ok().map(|(name, ledger)| tally(&world, name, &ledger));
        Self {
            phase: phase.map(Phase::name),
            reason,
            at: world.now(),
            calls: world.calls(),
            effects: std::mem::take(&mut world.performed),
            transitions: std::mem::take(&mut world.transitions),
            violations,
            log: std::mem::take(&mut world.log).into_lines(),
            tally,
        }
    }
}

impl Verdict {
    /// The violations, with the numbers of the invariants that they break.
    pub(crate) fn broken(&self) -> impl Iterator<Item = (Vec<u8>, &str)> {
        self.violations.iter().map(|violation| {
            let tally = self.tally.as_ref();
            let some = |count: fn(&Tally) -> u64| tally.is_some_and(|tally| count(tally) > 0);
            let broken = if violation.starts_with(TWO_COPIES) {
                vec![4]
            } else if violation.contains(LOST) {
                vec![1]
            } else if violation.contains(DUPLICATED) {
                let of = [(2, some(|tally| tally.duplicated)), (3, some(|tally| tally.reordered))];
                of.into_iter().filter_map(|(number, broken)| broken.then_some(number)).collect()
            } else if violation.contains(SURVIVES) {
                vec![5]
            } else {
                vec![6]
            };
            (broken, violation.as_str())
        })
    }
}

/// Words by which the sentences of the violations are told apart.
pub(crate) const TWO_COPIES: &str = "two copies consume";
pub(crate) const LOST: &str = "messages are lost to";
const DUPLICATED: &str = "duplicated,";
const SURVIVES: &str = "survive";

/// The protocol goes by its table of transitions.
fn unknown(made: &BTreeSet<(Step, Step)>) -> impl Iterator<Item = String> {
    let unknown = made.iter().filter(|(from, to)| !from.next().contains(to));
    unknown.map(|(from, to)| format!("{from} went to {to}, which is not in the table"))
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
    for pod in world.pods.iter().filter(|pod| pod.kept && !pod.gone) {
        found.push(format!("pod {} is kept", pod.name));
    }
    if world.held {
        found.push(format!("the name {SOURCE} is kept"));
    }
    let leaves = world.scenario.owner == OwnerKind::Shrinking;
    if world.smaller != (leaves && matches!(phase, Some(Phase::Completed { .. }))) {
        found.push(format!("the set has one pod less: {}", world.smaller));
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

/// The copy that survives, or the queue that waits for one.
fn survivor(world: &World) -> Result<(&str, Ledger), String> {
    let survivors: Vec<(&str, &Ledger)> = world
        .pods
        .iter()
        .filter(|pod| pod.alive())
        .filter_map(|pod| {
            let process = world.processes[pod.process?].as_ref()?;
            Some((pod.name.as_str(), &process.memory.ledger))
        })
        .collect();
    match survivors.as_slice() {
        [(name, ledger)] => Ok((name, (*ledger).clone())),
        // A bare pod that died by a fault stays dead: what is left waits in its queue.
        [] if world.bereaved && (world.scenario.owner == OwnerKind::Bare || world.smaller) => {
            let mut ledger = world.base.clone();
            for (message, count, _) in world.broker.ready(QUEUE) {
                if let Message::Data(first) = message {
                    ledger.apply((*first, count));
                }
            }
            Ok((QUEUE, ledger))
        }
        several => Err(format!("{} copies {SURVIVES}", several.len())),
    }
}

fn tally(world: &World, survivor: &str, ledger: &Ledger) -> Tally {
    let published: u64 = world.published.iter().sum();
    Tally {
        survivor: survivor.to_owned(),
        published,
        applied: ledger.applied(),
        lost: published.saturating_sub(ledger.applied()),
        duplicated: ledger.duplicated,
        reordered: ledger.reordered,
    }
}

/// What was published, and never applied.
pub(crate) fn missing(ledger: &Ledger, published: &[u64]) -> Serials {
    let mut missing = ledger.gaps.clone();
    for (publisher, (last, published)) in (0..).zip(ledger.last.iter().zip(published)) {
        let first = Serial { publisher, sequence: last + 1 };
        missing.insert((first, published.saturating_sub(*last)));
    }
    missing
}

/// Invariants 1 to 3, of the copy that survives.
fn lost_or_worse(world: &World, phase: Option<&Phase>) -> Vec<String> {
    let (name, ledger) = match survivor(world) {
        Ok(found) => found,
        Err(why) => return vec![why],
    };
    let mut found = Vec::new();
    let completed = matches!(phase, Some(Phase::Completed { .. }));
    // A StatefulSet's pod keeps its name.
    let renamed = completed && world.scenario.owner != OwnerKind::StatefulSet;
    if !world.bereaved && renamed != (name != SOURCE) {
        found.push(format!("{name} {SURVIVES}s, completed: {completed}"));
    }
    // What a process took that had strayed from its queue, and died, is in no copy's queue.
    // Neither is what it owed to a queue that it had left.
    let careless = world.strayed || world.scenario.habits.late_acks > 0;
    let strayed_and_died = world.bereaved && careless;
    if world.forgiven || strayed_and_died {
        return found;
    }
    // What the broker forgot with a restart, before anybody had it confirmed, is nobody's.
    let lost = missing(&ledger, &world.published).without(&world.unconfirmed).count();
    let survivor = world.pods.iter().position(|pod| pod.alive() && pod.name == name);
    if lost > survivor.map_or(0, |pod| world.unreplayed(pod)) {
        found.push(format!("{lost} {LOST} {name}: {ledger:?}"));
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
        found.push(format!("{duplicated} {DUPLICATED} {reordered} reordered at {name}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutant::MUTANTS;
    use crate::scenario::Scenario;

    #[test]
    fn every_violation_is_of_an_invariant_and_most_invariants_can_be_violated() {
        let mut numbers = BTreeSet::new();
        for mutant in MUTANTS {
            for seed in 0..300 {
                let verdict = crate::run(Scenario::from_seed(seed), Some(mutant));
                for (broken, why) in verdict.broken() {
                    assert!(!broken.is_empty(), "seed {seed}, {mutant:?}: {why}");
                    numbers.extend(broken);
                }
            }
        }
        assert!(numbers.is_superset(&[1, 2, 3, 6].into()), "{numbers:?}");
    }
}
