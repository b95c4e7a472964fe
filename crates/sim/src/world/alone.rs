//! Without a queue: those who would publish ask the application itself, and what it answers is what
//! it knows. What its copy does not know it was asked after its checkpoint.

use shadow_broker::memory::core::Serial;
use shadow_protocol::effect::Effect;

use super::{SOURCE, World};

impl World {
    /// Asks whoever bears the application's name; nobody answers, nothing is known.
    pub(super) fn ask(&mut self, publisher: u8) {
        let bears = self.pods.iter().filter(|pod| pod.name == SOURCE);
        let Some(process) = bears.filter_map(|pod| pod.process).next_back() else { return };
        let process = self.processes[process].as_mut();
        let Some(process) = process.filter(|process| !process.frozen) else { return };
        let count = self.scenario.burst;
        let last = &mut self.published[usize::from(publisher)];
        let first = Serial { publisher: publisher.into(), sequence: *last + 1 };
        *last += count;
        process.memory.ledger.apply((first, count));
    }

    /// A process that is no copy is about to end: what it knows now, and its checkpoint does not, is
    /// lost.
    pub(super) fn last_words(&mut self, pod: usize) {
        let found = &self.pods[pod];
        let process = found.process.filter(|_| !found.ours);
        if let Some(process) = process.and_then(|process| self.processes[process].as_ref()) {
            self.last_words = self.last_words.max(process.memory.ledger.applied());
        }
    }

    /// How much a pod may not know, because nobody replays it.
    pub(crate) fn unreplayed(&self, pod: usize) -> u64 {
        let checkpoint = self.pods[pod].checkpoint.filter(|_| self.scenario.alone());
        let knew = checkpoint.map(|checkpoint| self.checkpoints[checkpoint].ledger.applied());
        knew.map_or(0, |knew| self.last_words.saturating_sub(knew))
    }

    /// Nothing is asked of a broker that is not there.
    pub(super) fn check_alone(&mut self, effect: &Effect) {
        if self.scenario.alone() && matches!(effect, Effect::Topology(_) | Effect::Order(_)) {
            self.violations.push(format!("{} without a broker", effect.name()));
        }
    }
}
