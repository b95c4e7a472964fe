//! Invariants 1 and 5 of `docs/handoff.md` while a migration is under way: whoever would survive if
//! it ended now has applied every message, or can still reach it.

use shadow_protocol::names::Names;

use super::{Event, QUEUE, World};
use crate::message::Message;
use crate::verdict::{LOST, missing};

impl Event {
    /// Messages can be lost by it, as by what the operator does.
    pub(super) fn is_grave(&self) -> bool {
        matches!(self, Self::Fault(_) | Self::Gone(_) | Self::Late(_))
    }
}

impl World {
    pub(super) fn check_whole(&mut self) {
        if let Some(violation) = self.broken() {
            self.violations.push(violation);
        }
    }

    fn broken(&self) -> Option<String> {
        let excused = self.bereaved || self.forgiven || self.strayed || self.intruded;
        let state = self.state().filter(|state| !state.phase.is_final())?;
        if excused || self.scenario.habits.late_acks > 0 || !self.violations.is_empty() {
            return None;
        }
        let plan = state.phase.plan()?;
        let pod = if self.committed() {
            self.target(plan)?
        } else if plan.base().is_some_and(|base| base.vacated) {
            self.source_of(plan)?
        } else {
            self.source_of(plan.origin())?
        };
        let process = self.processes[self.pods[pod].process?].as_ref()?;
        let names = [&plan.names, &plan.origin().names];
        let side = names.into_iter().flat_map(Names::side_queues);
        let mut missing =
            missing(&process.memory.ledger, &self.published).without(&self.unconfirmed);
        for queue in std::iter::once(QUEUE).chain(side) {
            let ready = self.broker.ready(queue).map(|(first, count, _)| (first, count));
            let held = self.broker.held(queue).map(|(_, first, count)| (first, count));
            for (first, count) in ready.chain(held) {
                if let Message::Data(first) = first {
                    missing.remove((*first, count));
                }
            }
        }
        for (_, first, count) in self.broker.unconfirmed() {
            if let Message::Data(first) = first {
                missing.remove((*first, count));
            }
        }
        if missing.count() <= self.unreplayed(pod) {
            return None;
        }
        let (name, step) = (&self.pods[pod].name, state.phase.step());
        Some(format!("{} {LOST} {name} in {step}, after {} ms", missing.count(), self.now))
    }
}

#[cfg(test)]
mod tests {
    use crate::mutant::MUTANTS;
    use crate::scenario::Scenario;
    use crate::verdict::LOST;

    #[test]
    fn a_loss_is_found_when_it_happens_not_at_the_end() {
        let early = MUTANTS.into_iter().filter(|mutant| {
            (0..200).any(|seed| {
                let found = crate::run(Scenario::from_seed(seed), Some(*mutant)).violations;
                found.iter().any(|it| it.contains(LOST) && it.ends_with(" ms"))
            })
        });
        let early: Vec<_> = early.collect();
        println!("{early:?}");
        assert!(early.len() > 1, "{early:?}");
    }
}
