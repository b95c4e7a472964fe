//! A broker as a pure state machine: same calls, same state.
//!
//! There is no clock, no randomness and no task in it. Time is told by [`Broker::advance`]; what a
//! real broker decides by racing is a call of its own that the caller makes when it likes:
//!
//! | race | call |
//! |---|---|
//! | when a delivery reaches its consumer | [`Broker::take`] |
//! | when publishes that are routed already arrive | [`Broker::publish_trailing`], [`Broker::flush`], [`Broker::flush_into`] |
//! | when a transaction arrives | [`Broker::commit`] |
//! | when a quorum queue can't be asked | [`Broker::set_blind`] |
//! | when a message has waited long enough | [`Broker::expire`], or [`Broker::advance`] |
//!
//! Messages are counted, not enumerated: a queue holds [runs](message::Content), so a backlog of a
//! million messages of one publisher is one entry.
//!
//! **What differs from `RabbitMQ`.** Each consumer has a channel of its own, so a refusal never
//! disturbs another one. All messages are persistent. There is no `basic.get`, no
//! consumer without acknowledgements or alone on its queue, no auto-delete, dead-lettering and TTL
//! only as [`QueueOptions::waiting`] has them, and of a queue without consumers, no length limit or priority queue, no stream, no policy; an argument that asks for one is
//! recorded, not obeyed. Transactions cover publishes, not acknowledgements. The lists of consumers
//! and bindings are live, where the real management API's lag. The broker is one node.

mod connection;
mod consumer;
mod exchange;
mod message;
mod publish;
mod queue;
mod refusal;
mod statistics;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use consumer::{ConsumeOptions, ConsumerView, Delivery};
pub use exchange::{Destination, ExchangeKind, ExchangeOptions};
pub use message::{Content, Serial};
pub use publish::{Publish, Published};
pub use queue::{Expiry, Kind, QueueOptions};
pub use refusal::{Object, Refusal};
pub use statistics::{Figures, Settings};

use connection::Connection;
use consumer::Consumer;
use exchange::Bound;
use publish::Routed;
use queue::Queue;

/// A name; cheap to copy.
pub type Name = Arc<str>;

/// A client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u32);

/// A consumer, and the channel it is alone on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub u32);

/// The broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broker<M = Serial> {
    now: u64,
    settings: Settings,
    connections: BTreeMap<ConnectionId, Connection<M>>,
    consumers: BTreeMap<ConsumerId, Consumer<M>>,
    exchanges: BTreeMap<Name, ExchangeOptions>,
    /// By the exchange the messages come from.
    bindings: BTreeMap<Name, BTreeSet<Bound>>,
    queues: BTreeMap<Name, Queue<M>>,
    /// Routed, not arrived. Outlives the connection, as the broker has read them.
    trailing: BTreeMap<ConnectionId, VecDeque<Routed<M>>>,
    /// Sent under an alarm, not read. Outlives the client's end of the connection.
    blocked: VecDeque<(ConnectionId, Publish<M>)>,
    alarm: bool,
    next_id: u32,
}

impl<M> Default for Broker<M> {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl<M> Broker<M> {
    /// An empty broker.
    pub fn new(settings: Settings) -> Self {
        Self {
            now: 0,
            settings,
            connections: BTreeMap::new(),
            consumers: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            bindings: BTreeMap::new(),
            queues: BTreeMap::new(),
            trailing: BTreeMap::new(),
            blocked: VecDeque::new(),
            alarm: false,
            next_id: 0,
        }
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }
}
