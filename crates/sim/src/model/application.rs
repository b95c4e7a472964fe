//! Copies of the application, and their pods.

use shadow_broker::memory::core::{ConnectionId, ConsumerId};
use shadow_protocol::names::control_queue;

use serde::{Deserialize, Serialize};

use super::wire::{Body, Place, Wire};

/// What a copy has applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ledger {
    /// Of each publisher, a bit for each message.
    applied: Vec<u8>,
    /// Something was applied twice.
    pub doubled: bool,
    /// Something was applied after a later message of the same publisher.
    pub overtaken: bool,
}

impl Ledger {
    pub fn new(publishers: usize) -> Self {
        Self { applied: vec![0; publishers], ..Self::default() }
    }

    pub fn apply(&mut self, publisher: u8, number: u8) {
        let applied = &mut self.applied[usize::from(publisher)];
        let bit = 1 << number;
        self.doubled |= *applied & bit != 0;
        self.overtaken |= *applied & !bit > bit;
        *applied |= bit;
    }

    pub fn has(&self, publisher: u8, number: u8) -> bool {
        self.applied[usize::from(publisher)] & (1 << number) != 0
    }
}

/// What a checkpoint keeps of a process: not what it was sent and has not applied, as its copy
/// begins with a new connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memory {
    pub ledger: Ledger,
    /// The queue it was told to consume.
    pub told: Option<Place>,
}

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub memory: Memory,
    /// Where it goes when it holds nothing any more.
    pub going: Option<Place>,
    pub consuming: Option<Place>,
    client: ConnectionId,
    reader: ConsumerId,
    consumer: Option<ConsumerId>,
}

/// Derived from what it is, without the broker's numbers.
impl std::hash::Hash for Process {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        (&self.memory, self.going, self.consuming).hash(hasher);
    }
}

/// How applications behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Habits {
    /// Messages sent and not acknowledged at most.
    pub prefetch: u64,
    /// Returns to the queue it was told to consume when it connects.
    pub remembers: bool,
}

impl Process {
    /// A process wakes and connects.
    pub fn wake(memory: Memory, pod: &str, habits: Habits, wire: &mut Wire) -> Option<Self> {
        let (client, reader) = wire.connect(pod)?;
        let told = memory.told.filter(|place| habits.remembers && wire.exists(*place));
        let memory = Memory { told, ..memory };
        let (going, consuming, consumer) = (None, None, None);
        let mut process = Self { memory, going, consuming, client, reader, consumer };
        process.start(told.unwrap_or(Place::Q), habits, wire);
        Some(process)
    }

    fn start(&mut self, place: Place, habits: Habits, wire: &mut Wire) {
        self.consumer = wire.consume(self.client, place, habits.prefetch);
        self.consuming = self.consumer.map(|_| place);
    }

    /// What it was sent and has not applied.
    pub fn held<'a>(&self, wire: &'a Wire) -> impl Iterator<Item = Body> + 'a {
        let held = self.consuming.zip(self.consumer);
        held.into_iter().flat_map(|(place, consumer)| wire.held(place.name(), consumer))
    }

    /// Holds a message that it has not applied.
    pub fn busy(&self, wire: &Wire) -> bool {
        self.held(wire).next().is_some()
    }

    /// Applies and acknowledges one message.
    pub fn work(&mut self, wire: &mut Wire) {
        let read = self.consumer.and_then(|consumer| wire.acknowledge(consumer));
        if let Some(Body::Event { publisher, number }) = read {
            self.memory.ledger.apply(publisher, number);
        }
    }

    /// The order it has been sent and has not obeyed.
    pub fn order(&self, pod: &str, wire: &Wire) -> Option<Body> {
        wire.held(&control_queue(pod), self.reader).next()
    }

    /// Begins to obey: it takes nothing more where it is.
    pub fn obey(&mut self, order: Body, wire: &mut Wire) {
        self.memory.told = match order {
            Body::Consume(place) => Some(place),
            _ => None,
        };
        self.going = Some(self.memory.told.unwrap_or(Place::Q));
        if let Some(consumer) = self.consumer {
            wire.cancel(consumer);
        }
    }

    /// Has obeyed: it consumes what it was told to.
    pub fn go(&mut self, habits: Habits, wire: &mut Wire) {
        let Some(place) = self.going.take() else { return };
        self.memory.told = self.memory.told.filter(|place| wire.exists(*place));
        let place = if wire.exists(place) { place } else { Place::Q };
        self.start(place, habits, wire);
        wire.acknowledge(self.reader);
    }

    /// Its end: what it held returns.
    pub fn end(&self, wire: &mut Wire) {
        wire.close(self.client);
    }
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pod {
    /// How often its container was started.
    pub container: u8,
    pub process: Option<Process>,
    /// What its container starts with.
    pub image: Memory,
    pub terminating: bool,
    /// Its handoff gate is open, or it has none.
    pub open: bool,
}
