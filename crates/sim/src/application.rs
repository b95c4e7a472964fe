//! Copies of the application: what they apply, what they hold, what they do when told or cut off.

use std::collections::{BTreeSet, VecDeque};

use shadow_protocol::broker::Binding;
use shadow_protocol::control::Control;

use crate::broker::{Broker, Message};

/// What a copy has applied: its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Highest number applied, by publisher.
    pub last: Vec<u32>,
    /// Numbers below the highest that were never applied.
    pub gaps: BTreeSet<Message>,
    /// Messages applied twice.
    pub duplicated: u32,
    /// Messages applied after a later one of the same publisher.
    pub reordered: u32,
    /// Applied, and not acknowledged when the connection was lost: the broker must send them again,
    /// as it would without a migration.
    pub again: BTreeSet<Message>,
}

impl Ledger {
    /// The ledger of a process that has applied nothing, with `last` known to be applied before it.
    pub fn new(last: Vec<u32>) -> Self {
        Self { last, ..Self::default() }
    }

    /// How many messages have been applied, each counted once.
    pub fn applied(&self) -> u64 {
        let highest: u64 = self.last.iter().copied().map(u64::from).sum();
        highest.saturating_sub(self.gaps.len() as u64)
    }

    /// Applies one message.
    pub fn apply(&mut self, message: Message) {
        let last = &mut self.last[usize::from(message.publisher)];
        if message.number > *last {
            for number in *last + 1..message.number {
                self.gaps.insert(Message { number, ..message });
            }
            *last = message.number;
        } else if self.gaps.remove(&message) {
            self.reordered += 1;
        } else if !self.again.remove(&message) {
            self.duplicated += 1;
        }
    }
}

/// What applications do differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Habits {
    /// Messages held at most.
    pub prefetch: usize,
    /// Messages per acknowledgement.
    pub batch: usize,
    /// Work per message in milliseconds.
    pub service: u64,
    /// Declares and binds its queue on every connect.
    pub rebinds: bool,
    /// Acknowledges the last batch only when it consumes the next queue, after so many milliseconds.
    pub late_acks: u64,
    /// Goes back to the queue it was told to consume when it has lost its connection.
    pub remembers: bool,
    /// Time until it looks for orders, in milliseconds.
    pub attention: u64,
    /// Time until it connects again, in milliseconds.
    pub reconnect: u64,
}

/// What a checkpoint keeps of a process.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Its state.
    pub ledger: Ledger,
    /// The queue it was told to consume.
    pub told: Option<String>,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// What a checkpoint keeps.
    pub memory: Memory,
    /// What `/etc/hostname` says.
    pub hostname: String,
    /// Its consumer at the broker, and the queue.
    pub consuming: Option<(u32, String)>,
    /// Connected.
    pub connected: bool,
    /// How often it has connected.
    pub connections: u32,
    /// Received and not applied.
    buffer: VecDeque<Message>,
    /// Applied and not acknowledged, oldest first.
    unacked: VecDeque<Message>,
    /// It is on its way to this queue.
    leaving: Option<String>,
    /// The consumer it had before, and how many messages of it are still to be acknowledged.
    overdue: Option<(u32, usize)>,
    /// Standing still for a checkpoint.
    pub frozen: bool,
}

/// What a process needs to know of the broker.
pub struct Surroundings<'a> {
    /// The broker.
    pub broker: &'a mut Broker,
    /// The application's own queue.
    pub primary: &'a str,
    /// The application's own binding.
    pub binding: &'a Binding,
    /// How it behaves.
    pub habits: Habits,
    /// The queue is a quorum queue.
    pub quorum: bool,
}

impl Process {
    /// A process that is about to connect.
    pub fn new(memory: Memory, hostname: &str) -> Self {
        Self {
            memory,
            hostname: hostname.to_owned(),
            consuming: None,
            connected: false,
            connections: 0,
            buffer: VecDeque::new(),
            unacked: VecDeque::new(),
            leaving: None,
            overdue: None,
            frozen: false,
        }
    }

    /// Its control queue.
    pub fn control(&self) -> String {
        shadow_protocol::names::control_queue(&self.hostname)
    }

    /// Connects and consumes what it remembers, or its own queue.
    pub fn connect(&mut self, around: &mut Surroundings) {
        self.connected = true;
        self.connections += 1;
        around.broker.declare_control(&self.control());
        let binding = around.habits.rebinds.then_some(around.binding);
        if around.habits.rebinds || around.broker.counts(around.primary).is_none() {
            around.broker.declare(around.primary, around.quorum, binding);
        }
        let told = self.memory.told.take().filter(|_| around.habits.remembers);
        let told = told.filter(|queue| around.broker.counts(queue).is_some());
        self.memory.told.clone_from(&told);
        let queue = told.unwrap_or_else(|| around.primary.to_owned());
        self.start(around, queue);
    }

    fn start(&mut self, around: &mut Surroundings, queue: String) {
        let consumer = around.broker.consume(&queue, around.habits.prefetch);
        self.consuming = consumer.map(|consumer| (consumer, queue));
    }

    /// Its connection is lost, and with it what it holds.
    pub fn disconnect(&mut self, broker: &mut Broker) {
        if let Some((consumer, _)) = self.consuming.take() {
            broker.drop_consumer(consumer);
        }
        if let Some((consumer, _)) = self.overdue.take() {
            broker.drop_consumer(consumer);
        }
        self.connected = false;
        self.buffer.clear();
        self.leaving = None;
        self.memory.ledger.again.extend(self.unacked.drain(..));
    }

    /// Highest number acknowledged, by publisher.
    pub fn acknowledged(&self) -> Vec<u32> {
        let mut last = self.memory.ledger.last.clone();
        for message in &self.unacked {
            let last = &mut last[usize::from(message.publisher)];
            *last = (*last).min(message.number - 1);
        }
        for message in &self.memory.ledger.again {
            let last = &mut last[usize::from(message.publisher)];
            *last = (*last).min(message.number - 1);
        }
        last
    }

    /// Looks for orders; obeying takes until what it holds is applied and acknowledged.
    pub fn look(&mut self, around: &mut Surroundings) {
        if !self.connected || self.frozen || self.leaving.is_some() {
            return;
        }
        let Some(order) = around.broker.next_order(&self.control()) else { return };
        let (told, queue) = match order {
            Control::StartReplay { queue, .. } => (Some(queue.clone()), queue.clone()),
            Control::EndReplay => (None, around.primary.to_owned()),
        };
        self.memory.told = told;
        if let Some((consumer, _)) = &self.consuming {
            around.broker.cancel(*consumer);
        }
        self.leaving = Some(queue);
        self.leave(around);
    }

    /// Works for one service time; whether there is more to do.
    pub fn work(&mut self, around: &mut Surroundings) -> bool {
        if !self.connected || self.frozen {
            return false;
        }
        if let Some(message) = self.buffer.pop_front() {
            self.memory.ledger.apply(message);
            self.unacked.push_back(message);
            if self.unacked.len() >= around.habits.batch {
                self.settle(around.broker);
            }
        }
        if self.leaving.is_some() {
            self.leave(around);
        } else {
            self.fetch(around.broker);
            // A batch is not waited for when nothing more comes.
            if self.buffer.is_empty() {
                self.settle(around.broker);
                self.fetch(around.broker);
            }
        }
        !self.buffer.is_empty()
    }

    fn fetch(&mut self, broker: &mut Broker) {
        let Some((consumer, _)) = self.consuming else { return };
        while let Some(message) = broker.fetch(consumer) {
            self.buffer.push_back(message);
        }
    }

    /// Acknowledges what it still owes to the queue it has left.
    pub fn pay(&mut self, broker: &mut Broker) {
        if let Some((consumer, count)) = self.overdue.take() {
            broker.ack(consumer, count);
            self.memory.ledger.again.clear();
        }
    }

    fn settle(&mut self, broker: &mut Broker) {
        if let Some((consumer, _)) = self.consuming {
            broker.ack(consumer, self.unacked.len());
        }
        self.unacked.clear();
    }

    fn leave(&mut self, around: &mut Surroundings) {
        if !self.buffer.is_empty() {
            return;
        }
        if let (true, Some((consumer, _)), None) =
            (around.habits.late_acks > 0, &self.consuming, self.overdue)
        {
            // Its channel is open still; the messages are remembered in case it breaks.
            self.overdue = Some((*consumer, self.unacked.len()));
            self.memory.ledger.again.extend(self.unacked.drain(..));
        } else {
            self.settle(around.broker);
        }
        let Some(queue) = self.leaving.take() else { return };
        let exists = around.broker.counts(&queue).is_some();
        if !exists {
            self.memory.told = None;
        }
        let queue = if exists { queue } else { around.primary.to_owned() };
        self.start(around, queue);
        around.broker.obeyed(&self.control());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_tells_loss_duplicates_and_inversions_apart() {
        let mut ledger = Ledger::new(vec![0]);
        let message = |number| Message { publisher: 0, number };
        for number in [1, 2, 4, 3, 4, 7] {
            ledger.apply(message(number));
        }
        assert_eq!((ledger.duplicated, ledger.reordered), (1, 1));
        assert_eq!(ledger.gaps.iter().map(|m| m.number).collect::<Vec<_>>(), [5, 6]);
        ledger.again.insert(message(7));
        ledger.apply(message(7));
        assert_eq!(ledger.duplicated, 1, "the broker had to send it again");
    }
}
