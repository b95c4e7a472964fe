//! The broker as the protocol knows it: routing, queues, consumers, in RabbitMQ's order.
//!
//! Messages are a publisher's number and a sequence number. Exchanges route by binding alone: the
//! keys of the simulated bindings always match.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shadow_protocol::broker::{Binding, Counts, Emptiness, Topology, Totals};
use shadow_protocol::control::Control;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// Who published it.
    pub publisher: u8,
    /// The how manieth of that publisher, from 1.
    pub number: u32,
}

/// A message in a queue: its place is kept when it is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    place: u64,
    message: Message,
}

#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<Entry>,
    /// A quorum queue: a cancelled consumer counts until it holds nothing.
    quorum: bool,
    totals: Totals,
}

#[derive(Debug)]
struct Consumer {
    queue: String,
    prefetch: usize,
    cancelled: bool,
    held: VecDeque<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    Queue(String),
    Exchange(String),
}

/// The broker.
#[derive(Debug, Default)]
pub struct Broker {
    queues: BTreeMap<String, Queue>,
    /// Exchanges and their alternates.
    exchanges: BTreeMap<String, Option<String>>,
    bindings: BTreeSet<(Binding, Destination)>,
    /// Control queues and their orders.
    orders: BTreeMap<String, VecDeque<Control>>,
    consumers: BTreeMap<u32, Consumer>,
    next_consumer: u32,
    next_place: u64,
    routes: BTreeMap<String, Vec<String>>,
}

impl Broker {
    /// An application's queue, bound.
    pub fn declare(&mut self, queue: &str, quorum: bool, binding: Option<&Binding>) {
        self.queues.entry(queue.to_owned()).or_insert_with(|| Queue { quorum, ..Queue::default() });
        if let Some(binding) = binding {
            self.exchanges.entry(binding.source.clone()).or_default();
            self.bind(binding.clone(), Destination::Queue(queue.to_owned()));
        }
    }

    /// An application's control queue.
    pub fn declare_control(&mut self, queue: &str) {
        self.orders.entry(queue.to_owned()).or_default();
    }

    fn bind(&mut self, binding: Binding, destination: Destination) {
        self.bindings.insert((binding, destination));
        self.routes.clear();
    }

    /// The queues that a message published to `exchange` reaches now, each once.
    pub fn route(&mut self, exchange: &str) -> Vec<String> {
        if let Some(known) = self.routes.get(exchange) {
            return known.clone();
        }
        let mut found = BTreeSet::new();
        self.collect(exchange, &mut found, &mut BTreeSet::new());
        let found: Vec<String> = found.into_iter().collect();
        self.routes.insert(exchange.to_owned(), found.clone());
        found
    }

    fn collect(&self, exchange: &str, found: &mut BTreeSet<String>, seen: &mut BTreeSet<String>) {
        if !seen.insert(exchange.to_owned()) {
            return;
        }
        let mut routed = false;
        for (binding, destination) in &self.bindings {
            if binding.source != exchange {
                continue;
            }
            routed = true;
            match destination {
                Destination::Queue(queue) => {
                    found.insert(queue.clone());
                }
                Destination::Exchange(next) => self.collect(next, found, seen),
            }
        }
        if let (false, Some(Some(alternate))) = (routed, self.exchanges.get(exchange)) {
            self.collect(alternate, found, seen);
        }
    }

    /// A message arrives in a queue; lost if the queue is gone.
    pub fn enqueue(&mut self, queue: &str, message: Message) {
        self.next_place += 1;
        let entry = Entry { place: self.next_place, message };
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.totals.routed += 1;
            queue.ready.push_back(entry);
        }
    }

    /// Registers a consumer; `None` when there is no such queue.
    pub fn consume(&mut self, queue: &str, prefetch: usize) -> Option<u32> {
        self.queues.get(queue)?;
        self.next_consumer += 1;
        let (queue, held) = (queue.to_owned(), VecDeque::new());
        let consumer = Consumer { queue, prefetch, cancelled: false, held };
        self.consumers.insert(self.next_consumer, consumer);
        Some(self.next_consumer)
    }

    /// The next message for `consumer`.
    pub fn fetch(&mut self, consumer: u32) -> Option<Message> {
        let found = self.consumers.get_mut(&consumer)?;
        if found.cancelled || found.held.len() >= found.prefetch {
            return None;
        }
        let entry = self.queues.get_mut(&found.queue)?.ready.pop_front()?;
        found.held.push_back(entry);
        Some(entry.message)
    }

    /// Acknowledges the `count` oldest messages that `consumer` holds.
    pub fn ack(&mut self, consumer: u32, count: usize) {
        let Some(found) = self.consumers.get_mut(&consumer) else { return };
        let acknowledged = found.held.drain(..count.min(found.held.len())).count();
        if let Some(queue) = self.queues.get_mut(&found.queue) {
            queue.totals.acknowledged += acknowledged as u64;
        }
        self.forget(consumer);
    }

    /// Sends `consumer` nothing more; what it holds is still its to acknowledge.
    pub fn cancel(&mut self, consumer: u32) {
        if let Some(found) = self.consumers.get_mut(&consumer) {
            found.cancelled = true;
        }
        self.forget(consumer);
    }

    fn forget(&mut self, consumer: u32) {
        let done = |found: &Consumer| found.cancelled && found.held.is_empty();
        if self.consumers.get(&consumer).is_some_and(done) {
            self.consumers.remove(&consumer);
        }
    }

    /// The consumer's connection is lost: what it holds returns to its place.
    pub fn drop_consumer(&mut self, consumer: u32) {
        let Some(found) = self.consumers.remove(&consumer) else { return };
        let Some(queue) = self.queues.get_mut(&found.queue) else { return };
        for entry in found.held {
            queue.totals.redelivered += 1;
            let at = queue.ready.partition_point(|other| other.place < entry.place);
            queue.ready.insert(at, entry);
        }
    }

    /// Whether `consumer` is still registered.
    pub fn has(&self, consumer: u32) -> bool {
        self.consumers.contains_key(&consumer)
    }

    /// Ready messages and consumers at this instant.
    pub fn counts(&self, name: &str) -> Option<Counts> {
        if let Some(orders) = self.orders.get(name) {
            return Some(Counts { ready: orders.len() as u64, consumers: 0 });
        }
        let queue = self.queues.get(name)?;
        let here =
            |consumer: &&Consumer| consumer.queue == name && (queue.quorum || !consumer.cancelled);
        let consumers = self.consumers.values().filter(here).count();
        let consumers = u32::try_from(consumers).unwrap_or(u32::MAX);
        Some(Counts { ready: queue.ready.len() as u64, consumers })
    }

    /// The broker's word that a queue holds neither ready nor unacknowledged messages.
    pub fn emptiness(&self, name: &str) -> Emptiness {
        let empty = self.queues.get(name).is_some_and(|queue| queue.ready.is_empty());
        if empty { self.quiet(name) } else { Emptiness::Unproved }
    }

    /// The broker's word that nothing of a queue is unacknowledged.
    pub fn quiet(&self, name: &str) -> Emptiness {
        let held = |consumer: &Consumer| consumer.queue == name && !consumer.held.is_empty();
        let quiet = self.queues.contains_key(name) && !self.consumers.values().any(held);
        if quiet { Emptiness::Proved } else { Emptiness::Unproved }
    }

    /// What a queue has seen.
    pub fn totals(&self, name: &str) -> Totals {
        self.queues.get(name).map(|queue| queue.totals).unwrap_or_default()
    }

    /// The bindings of `queue`, sorted.
    pub fn bindings(&self, queue: &str) -> Vec<Binding> {
        let of = |destination: &Destination| *destination == Destination::Queue(queue.to_owned());
        let bound = self.bindings.iter().filter(|(_, destination)| of(destination));
        bound.map(|(binding, _)| binding.clone()).collect()
    }

    /// All that is there, by name, for the end: nothing of a migration may be left.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.queues.keys().chain(self.exchanges.keys()).chain(self.orders.keys())
    }

    /// The ready messages of a queue, in order.
    pub fn waiting(&self, queue: &str) -> impl Iterator<Item = Message> {
        self.queues.get(queue).into_iter().flat_map(|q| q.ready.iter().map(|entry| entry.message))
    }

    /// Lays an order into a control queue; `false` when there is none.
    pub fn order(&mut self, queue: &str, control: &Control) -> bool {
        let Some(orders) = self.orders.get_mut(queue) else { return false };
        orders.push_back(control.clone());
        true
    }

    /// The oldest order in a control queue; it stays until it is obeyed.
    pub fn next_order(&self, queue: &str) -> Option<&Control> {
        self.orders.get(queue)?.front()
    }

    /// The oldest order has been obeyed.
    pub fn obeyed(&mut self, queue: &str) {
        if let Some(orders) = self.orders.get_mut(queue) {
            orders.pop_front();
        }
    }

    /// One change of the topology; the error is the broker's.
    pub fn apply(&mut self, change: &Topology) -> Result<(), String> {
        self.routes.clear();
        match change {
            Topology::DeclareExchange { name, alternate } => {
                self.exchanges.insert(name.clone(), alternate.clone());
            }
            Topology::DeclareSideQueue { name } => self.declare(name, true, None),
            Topology::DeclareControlQueue { name, .. } => {
                self.orders.entry(name.clone()).or_default().clear();
            }
            Topology::BindQueue { queue, binding } => {
                if !self.queues.contains_key(queue) || !self.exchanges.contains_key(&binding.source)
                {
                    return Err(format!("can't bind {queue} to {}", binding.source));
                }
                self.bind(binding.clone(), Destination::Queue(queue.clone()));
            }
            Topology::UnbindQueue { queue, binding } => {
                self.bindings.remove(&(binding.clone(), Destination::Queue(queue.clone())));
            }
            Topology::BindExchange { destination, binding } => {
                for exchange in [destination, &binding.source] {
                    if !self.exchanges.contains_key(exchange) {
                        return Err(format!("no exchange {exchange}"));
                    }
                }
                self.bind(binding.clone(), Destination::Exchange(destination.clone()));
            }
            Topology::UnbindExchange { destination, binding } => {
                let destination = Destination::Exchange(destination.clone());
                self.bindings.remove(&(binding.clone(), destination));
            }
            Topology::DeleteExchange { name } => {
                self.exchanges.remove(name);
                let gone = Destination::Exchange(name.clone());
                self.bindings.retain(|(b, destination)| b.source != *name && *destination != gone);
            }
            Topology::DeleteQueue { name } => return self.delete(name),
            Topology::Purge { queue } => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.ready.clear();
                }
            }
            Topology::Move { from, to } => {
                let left = self.queues.get_mut(from).map(|queue| std::mem::take(&mut queue.ready));
                for entry in left.into_iter().flatten() {
                    self.enqueue(to, entry.message);
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Result<(), String> {
        if self.counts(name).is_some_and(|counts| counts.consumers > 0) {
            return Err(format!("queue {name} is in use"));
        }
        self.orders.remove(name);
        self.queues.remove(name);
        let gone = Destination::Queue(name.to_owned());
        self.bindings.retain(|(_, destination)| *destination != gone);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u32) -> Message {
        Message { publisher: 0, number }
    }

    #[test]
    fn a_message_reaches_a_queue_once_and_the_alternate_gets_what_has_no_route() {
        let mut broker = Broker::default();
        for (name, alternate) in [("e", None), ("hold", None), ("gate", Some("hold".to_owned()))] {
            let name = name.to_owned();
            broker.apply(&Topology::DeclareExchange { name, alternate }).unwrap();
        }
        broker.declare("q", false, Some(&Binding::plain("e")));
        broker.declare("s", true, Some(&Binding::plain("hold")));
        let gate = |binding| Topology::BindExchange { destination: "gate".into(), binding };
        broker.apply(&gate(Binding::plain("e"))).unwrap();
        assert_eq!(broker.route("e"), ["q", "s"], "the gate has no route of its own yet");
        let binding = Binding::plain("gate");
        broker.apply(&Topology::BindQueue { queue: "q".into(), binding }).unwrap();
        assert_eq!(broker.route("e"), ["q"], "by two ways, once");
    }

    #[test]
    fn what_a_lost_consumer_held_returns_to_its_place() {
        let mut broker = Broker::default();
        broker.declare("q", false, None);
        for number in 1..=5 {
            broker.enqueue("q", message(number));
        }
        let consumer = broker.consume("q", 3).unwrap();
        let held: Vec<_> = std::iter::from_fn(|| broker.fetch(consumer)).collect();
        assert_eq!(held.len(), 3, "no more than the prefetch");
        broker.ack(consumer, 1);
        broker.cancel(consumer);
        assert_eq!(broker.quiet("q"), Emptiness::Unproved);
        broker.drop_consumer(consumer);
        assert_eq!(broker.quiet("q"), Emptiness::Proved);
        let waiting: Vec<u32> = broker.waiting("q").map(|message| message.number).collect();
        assert_eq!(waiting, [2, 3, 4, 5]);
    }

    #[test]
    fn a_quorum_queue_counts_a_cancelled_consumer_until_its_last_acknowledgement() {
        for (quorum, counted) in [(true, 1), (false, 0)] {
            let mut broker = Broker::default();
            broker.declare("q", quorum, None);
            broker.enqueue("q", message(1));
            let consumer = broker.consume("q", 1).unwrap();
            broker.fetch(consumer);
            broker.cancel(consumer);
            assert_eq!(broker.counts("q").unwrap().consumers, counted);
            broker.ack(consumer, 1);
            assert_eq!(broker.counts("q").unwrap().consumers, 0);
        }
    }
}
