//! The applications' part of the world: when processes get their turns.

use shadow_broker::memory::core::{Kind, Name};
use shadow_protocol::names::control_queue;

use super::{Event, QUEUE, World};
use crate::application::{Memory, Process, Surroundings};
use crate::verdict::TWO_COPIES;

impl World {
    pub(super) fn with<T>(
        &mut self,
        process: usize,
        act: impl FnOnce(&mut Process, &mut Surroundings) -> T,
    ) -> Option<T> {
        let mut around = Surroundings {
            broker: &mut self.broker,
            primary: &self.stage.queue,
            binding: &self.stage.binding,
            habits: self.scenario.habits,
            kind: if self.scenario.quorum { Kind::Quorum } else { Kind::Classic },
            // Who looks on wants to know how long it takes.
            haste: self.operator.finished && !self.publishing && self.watch.is_none(),
        };
        self.processes[process].as_mut().map(|process| act(process, &mut around))
    }

    /// Gives a process a turn, unless it has one coming.
    pub(super) fn nudge(&mut self, process: usize) {
        if !std::mem::replace(&mut self.working[process], true) {
            self.at(self.scenario.habits.service.max(1), Event::Work(process));
        }
    }

    /// Something has come to `queue`.
    pub(super) fn nudge_consumers(&mut self, queue: &Name) {
        for process in 0..self.processes.len() {
            if self.processes[process].as_ref().is_some_and(|found| found.consumes(queue)) {
                self.nudge(process);
            }
        }
    }

    pub(super) fn work(&mut self, process: usize) {
        self.working[process] = false;
        let watched = self.watch.is_some();
        let (more, moved, applied) = self
            .with(process, |process, around| {
                let before = process.consuming.clone();
                let applied = watched.then(|| process.memory.ledger.last.clone());
                let more = process.work(around);
                (more, process.consuming != before, applied)
            })
            .unwrap_or_default();
        if let Some(before) = applied {
            self.watch_work(process, &before);
        }
        if moved {
            self.arrived(process);
        }
        if more {
            self.nudge(process);
        }
    }

    pub(super) fn look(&mut self, process: usize) {
        let moved = self.with(process, |process, around| {
            let before = process.consuming.clone();
            process.look(around);
            process.consuming != before
        });
        if moved == Some(true) {
            self.arrived(process);
        }
        self.nudge(process);
    }

    /// A process consumes another queue.
    fn arrived(&mut self, process: usize) {
        let found = self.processes[process].as_ref();
        let consuming = found.and_then(|found| Some((found, found.consuming.as_ref()?)));
        let Some((name, queue)) = consuming.map(|(p, it)| (p.hostname.clone(), it.queue.clone()))
        else {
            return;
        };
        self.log.note(self.now, || format!("{name} consumes {queue}"));
        self.crowded(&queue);
        if self.scenario.habits.late_acks > 0 {
            self.at(self.scenario.habits.late_acks, Event::Pay(process));
        }
        self.nudge(process);
        self.at(self.scenario.habits.attention, Event::Look(process));
    }

    /// Invariant 4: at most one copy consumes `Q`.
    fn crowded(&mut self, queue: &Name) {
        let here = self.processes.iter().flatten().filter(|p| p.consumes(queue)).count();
        if **queue == *QUEUE && here > 1 && !self.bereaved && !self.strayed {
            self.violations.push(format!("{TWO_COPIES} {queue} after {} ms", self.now));
        }
    }

    pub(super) fn connect(&mut self, process: usize) {
        if self.scenario.alone() {
            return;
        }
        if self.now < self.broker_down_until {
            let after = self.broker_down_until - self.now + self.scenario.habits.reconnect;
            self.at(after, Event::Connect(process));
            return;
        }
        let connected = self.with(process, |process, around| {
            let already = process.connection.is_some();
            if !already {
                process.connect(around);
            }
            !already
        });
        if connected == Some(true) {
            self.arrived(process);
            let soon = self.rng.u64(..=self.scenario.habits.attention);
            self.at(soon, Event::Look(process));
        }
    }

    pub(super) fn spawn(&mut self, memory: Memory, hostname: &str, peer: &str) -> usize {
        self.processes.push(Some(Process::new(memory, hostname, peer)));
        self.working.push(false);
        let process = self.processes.len() - 1;
        let soon = self.rng.u64(1..=self.scenario.habits.reconnect);
        self.at(soon, Event::Connect(process));
        process
    }

    pub(super) fn fresh(&self) -> Memory {
        Memory { ledger: self.base.clone(), told: None }
    }

    /// The process ends; what it held returns to its queue.
    pub(super) fn kill(&mut self, process: usize) {
        if let Some(mut dead) = self.processes[process].take() {
            dead.disconnect(&mut self.broker);
        }
        self.wake_all();
    }

    /// Whoever consumes a queue to which something was returned has something to do.
    pub(super) fn wake_all(&mut self) {
        for process in 0..self.processes.len() {
            if self.processes[process].is_some() {
                self.nudge(process);
            }
        }
    }

    /// The control queue of `pod` has an order.
    pub(super) fn ordered(&mut self, pod: &str) {
        let control = control_queue(pod);
        for process in 0..self.processes.len() {
            let listens = |found: &Process| **found.control() == *control;
            if self.processes[process].as_ref().is_some_and(listens) {
                self.at(self.scenario.habits.attention, Event::Look(process));
            }
        }
    }

    /// Orders may have come for anybody.
    pub(super) fn all_look(&mut self) {
        for process in 0..self.processes.len() {
            if self.processes[process].is_some() {
                self.at(self.scenario.habits.attention, Event::Look(process));
            }
        }
    }
}
