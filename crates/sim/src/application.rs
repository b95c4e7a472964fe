//! Copies of the application: what they apply, what they hold, what they do when told or cut off.

use std::collections::VecDeque;

use shadow_broker::memory::core::{
    ConnectionId, ConsumeOptions, ConsumerId, Destination, Kind, Name, QueueOptions, Serial,
};
use shadow_protocol::broker::Binding;
use shadow_protocol::control::Control;

use crate::message::{Broker, Message, Run, Serials};

/// What a copy has applied: its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Highest number applied, by publisher.
    pub last: Vec<u64>,
    /// Numbers below the highest that were never applied.
    pub gaps: Serials,
    /// Messages applied twice.
    pub duplicated: u64,
    /// Messages applied after a later one of the same publisher.
    pub reordered: u64,
    /// Applied, and not acknowledged when the connection was lost: the broker must send them again,
    /// as it would without a migration.
    pub again: Serials,
}

impl Ledger {
    /// The ledger of a process that has applied nothing, with `last` known to be applied before it.
    pub fn new(last: Vec<u64>) -> Self {
        Self { last, ..Self::default() }
    }

    /// How many messages have been applied, each counted once.
    pub fn applied(&self) -> u64 {
        self.last.iter().sum::<u64>().saturating_sub(self.gaps.count())
    }

    /// Applies messages in a row.
    pub fn apply(&mut self, (first, count): Run) {
        let Some(last) = self.last.get_mut(first.publisher as usize) else { return };
        let (end, before) = (first.sequence + count - 1, *last);
        if end > before {
            *last = end;
        }
        let skipped = first.sequence.saturating_sub(before + 1);
        self.gaps.insert((Serial { sequence: before + 1, ..first }, skipped));
        let old = (before + 1).saturating_sub(first.sequence).min(count);
        if old > 0 {
            let late = self.gaps.remove((first, old));
            self.reordered += late;
            self.duplicated += old - late - self.again.remove((first, old));
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
    /// Work per bite in milliseconds.
    pub service: u64,
    /// Messages per bite: more than one where a message takes less than a millisecond.
    pub bite: u64,
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
    pub told: Option<Name>,
}

/// A queue that a process consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consuming {
    /// The consumer.
    pub consumer: ConsumerId,
    /// The queue.
    pub queue: Name,
}

/// Messages that have reached the process.
#[derive(Debug)]
struct Received {
    tag: u64,
    run: Run,
}

/// Messages applied and not acknowledged.
#[derive(Debug, Default)]
struct Owed {
    runs: Vec<Run>,
    count: u64,
    /// The last one's tag.
    tag: u64,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    /// What a checkpoint keeps.
    pub memory: Memory,
    /// What `/etc/hostname` says.
    pub hostname: Name,
    /// Its network address.
    peer: Name,
    control: Name,
    /// Its connection.
    pub connection: Option<ConnectionId>,
    /// Its consumer at the broker, and the queue.
    pub consuming: Option<Consuming>,
    /// The consumer of its control queue.
    orders: Option<ConsumerId>,
    /// The order that is being obeyed.
    obeying: Option<u64>,
    buffer: VecDeque<Received>,
    owed: Owed,
    /// It is on its way to this queue.
    leaving: Option<Name>,
    /// What it still owes to the queue it has left.
    overdue: Option<(ConsumerId, Owed)>,
    /// Standing still for a checkpoint.
    pub frozen: bool,
}

/// What a process needs to know of the broker.
pub struct Surroundings<'a> {
    /// The broker.
    pub broker: &'a mut Broker,
    /// The application's own queue.
    pub primary: &'a Name,
    /// The application's own binding.
    pub binding: &'a Binding,
    /// How it behaves.
    pub habits: Habits,
    /// The type of its queue.
    pub kind: Kind,
    /// Nothing else happens any more: time is not waited for.
    pub haste: bool,
}

impl Process {
    /// A process on the host `hostname` at the address `peer` that is about to connect.
    pub fn new(memory: Memory, hostname: &str, peer: &str) -> Self {
        Self {
            memory,
            hostname: hostname.into(),
            peer: peer.into(),
            control: shadow_protocol::names::control_queue(hostname).into(),
            connection: None,
            consuming: None,
            orders: None,
            obeying: None,
            buffer: VecDeque::new(),
            owed: Owed::default(),
            leaving: None,
            overdue: None,
            frozen: false,
        }
    }

    /// Its control queue.
    pub fn control(&self) -> &Name {
        &self.control
    }

    /// Connects and consumes what it remembers, or its own queue. What the broker refuses is not
    /// there then.
    pub fn connect(&mut self, around: &mut Surroundings) {
        let broker = &mut *around.broker;
        let connection = broker.connect(&self.peer, &self.hostname);
        self.connection = Some(connection);
        let own = QueueOptions::durable(Kind::Classic);
        let _ = broker.declare_queue(connection, &self.control, own);
        self.orders = broker.consume(connection, &self.control, prefetch(1)).ok();
        if around.habits.rebinds {
            let own = QueueOptions::durable(around.kind);
            let _ = broker.declare_queue(connection, around.primary, own);
            let queue = Destination::Queue(around.primary.clone());
            let _ = broker.bind(connection, &queue, around.binding);
        }
        let told = self.memory.told.take().filter(|_| around.habits.remembers);
        let told = told.filter(|queue| broker.queue(queue).is_some());
        self.memory.told.clone_from(&told);
        let queue = told.unwrap_or_else(|| around.primary.clone());
        self.start(around, queue);
    }

    fn start(&mut self, around: &mut Surroundings, queue: Name) {
        let Some(connection) = self.connection else { return };
        let options = prefetch(around.habits.prefetch as u64);
        let consumer = around.broker.consume(connection, &queue, options).ok();
        self.consuming = consumer.map(|consumer| Consuming { consumer, queue });
    }

    /// Whether it consumes `queue`.
    pub fn consumes(&self, queue: &Name) -> bool {
        self.consuming.as_ref().is_some_and(|it| it.queue == *queue)
    }

    /// Its connection is lost, and with it what it holds.
    pub fn disconnect(&mut self, broker: &mut Broker) {
        if let Some(connection) = self.connection.take() {
            broker.close(connection);
        }
        (self.consuming, self.orders, self.obeying) = (None, None, None);
        (self.leaving, self.overdue) = (None, None);
        self.buffer.clear();
        for run in std::mem::take(&mut self.owed).runs {
            self.memory.ledger.again.insert(run);
        }
    }

    /// What it has acknowledged, which nobody gets again.
    pub fn acknowledged(&self) -> Ledger {
        let Ledger { last, mut gaps, again, .. } = self.memory.ledger.clone();
        self.owed.runs.iter().copied().chain(again.runs()).for_each(|run| gaps.insert(run));
        Ledger { gaps, ..Ledger::new(last) }
    }

    /// Looks for orders; obeying takes until what it holds is applied and acknowledged.
    pub fn look(&mut self, around: &mut Surroundings) {
        if self.frozen || self.obeying.is_some() {
            return;
        }
        let Some(orders) = self.orders else { return };
        let Ok(Some(order)) = around.broker.take(orders, 1) else { return };
        let Message::Order(control) = &order.first else { return };
        let told: Option<Name> = match &**control {
            Control::StartReplay { queue, .. } => Some(queue.as_str().into()),
            Control::EndReplay => None,
        };
        self.obeying = Some(order.tag);
        self.leaving = Some(told.clone().unwrap_or_else(|| around.primary.clone()));
        self.memory.told = told;
        if let Some(Consuming { consumer, .. }) = self.consuming {
            // What was sent already is still to be applied.
            let _ = around.broker.cancel(consumer);
            self.fetch(around.broker);
        }
        self.leave(around);
    }

    /// Works for one service time; whether there is more to do.
    pub fn work(&mut self, around: &mut Surroundings) -> bool {
        if self.connection.is_none() || self.frozen {
            return false;
        }
        let mut bite = if around.haste { u64::MAX } else { around.habits.bite };
        let batch = around.habits.batch as u64;
        while bite > 0
            && let Some(Received { tag, run: (first, count) }) = self.buffer.pop_front()
        {
            let taken = count.min(bite).min(batch.saturating_sub(self.owed.count).max(1));
            if taken < count {
                let (tag, sequence) = (tag + taken, first.sequence + taken);
                let run = (Serial { sequence, ..first }, count - taken);
                self.buffer.push_front(Received { tag, run });
            }
            bite -= taken;
            self.memory.ledger.apply((first, taken));
            self.owed.runs.push((first, taken));
            self.owed.count += taken;
            self.owed.tag = tag + taken - 1;
            if self.owed.count >= batch {
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
        let Some(Consuming { consumer, .. }) = self.consuming else { return };
        while let Ok(Some(delivery)) = broker.take(consumer, u64::MAX) {
            if let Message::Data(first) = delivery.first {
                let run = (first, delivery.count);
                self.buffer.push_back(Received { tag: delivery.tag, run });
            }
        }
    }

    /// Acknowledges what it still owes to the queue it has left.
    pub fn pay(&mut self, broker: &mut Broker) {
        if let Some((consumer, owed)) = self.overdue.take() {
            let _ = broker.ack(consumer, owed.tag, true);
            for run in owed.runs {
                self.memory.ledger.again.remove(run);
            }
        }
    }

    fn settle(&mut self, broker: &mut Broker) {
        let owed = std::mem::take(&mut self.owed);
        if let (Some(Consuming { consumer, .. }), 1..) = (&self.consuming, owed.count) {
            let _ = broker.ack(*consumer, owed.tag, true);
        }
    }

    fn leave(&mut self, around: &mut Surroundings) {
        if !self.buffer.is_empty() {
            return;
        }
        match &self.consuming {
            Some(Consuming { consumer, .. })
                if around.habits.late_acks > 0 && self.overdue.is_none() && self.owed.count > 0 =>
            {
                // Its channel is open still; the messages are remembered in case it breaks.
                let owed = std::mem::take(&mut self.owed);
                for run in &owed.runs {
                    self.memory.ledger.again.insert(*run);
                }
                self.overdue = Some((*consumer, owed));
            }
            _ => self.settle(around.broker),
        }
        let Some(queue) = self.leaving.take() else { return };
        let exists = around.broker.queue(&queue).is_some();
        if !exists {
            self.memory.told = None;
        }
        let queue = if exists { queue } else { around.primary.clone() };
        self.start(around, queue);
        if let (Some(orders), Some(tag)) = (self.orders, self.obeying.take()) {
            let _ = around.broker.ack(orders, tag, false);
        }
    }
}

fn prefetch(prefetch: u64) -> ConsumeOptions {
    ConsumeOptions { prefetch, ..ConsumeOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_tells_loss_duplicates_and_inversions_apart() {
        let mut ledger = Ledger::new(vec![0]);
        let run = |sequence, count| (Serial { publisher: 0, sequence }, count);
        for (sequence, count) in [(1, 2), (4, 1), (3, 2), (7, 1_000_000)] {
            ledger.apply(run(sequence, count));
        }
        assert_eq!((ledger.duplicated, ledger.reordered), (1, 1));
        assert_eq!(ledger.gaps.runs().collect::<Vec<_>>(), [run(5, 2)]);
        ledger.again.insert(run(7, 1));
        ledger.apply(run(7, 1));
        assert_eq!(ledger.duplicated, 1, "the broker had to send it again");
        ledger.apply(run(1_000_000, 10));
        assert_eq!((ledger.duplicated, ledger.last[0]), (1 + 7, 1_000_009));
    }
}
