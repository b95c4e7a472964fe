//! What the protocol knows of a message broker: facts it reads and operations it asks for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::Control;
use crate::names::control_queue;

/// Arguments of a queue or binding as the broker's management API prints them.
pub type Arguments = BTreeMap<String, Value>;

/// One binding of an exchange to a queue or to another exchange.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// Exchange the messages come from; empty for the default exchange.
    pub source: String,
    /// The routing key.
    pub routing_key: String,
    /// The arguments as canonical JSON text (sorted keys), so that bindings can be compared.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arguments: String,
}

/// Counters of one queue at one instant (a passive declare): no unacknowledged count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages waiting.
    pub ready: u64,
    /// Consumers registered.
    pub consumers: u32,
}

/// What a queue has seen since it exists, by the broker's statistics: they lag by some seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Totals {
    /// Messages routed to it.
    pub routed: u64,
    /// Messages acknowledged by consumers.
    pub acknowledged: u64,
    /// Messages delivered again.
    pub redelivered: u64,
}

impl Totals {
    /// What was added since `before`.
    #[must_use]
    pub fn since(self, before: Totals) -> Self {
        Self {
            routed: self.routed.saturating_sub(before.routed),
            acknowledged: self.acknowledged.saturating_sub(before.acknowledged),
            redelivered: self.redelivered.saturating_sub(before.redelivered),
        }
    }
}

/// One change of a queue's topology. Each is idempotent: done twice, it is done once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Topology {
    /// Declare a durable, internal fanout exchange.
    DeclareExchange {
        /// Its name.
        name: String,
        /// Where it sends what it can't route.
        alternate: Option<String>,
    },
    /// Declare a side queue: durable, quorum, single active consumer, no delivery limit.
    DeclareSideQueue {
        /// Its name.
        name: String,
    },
    /// Declare a queue whose messages go to the control queue of `pod` once they have waited for so long:
    /// durable, quorum, dead-lettered by their time to live.
    DeclareWaitingQueue {
        /// Its name.
        name: String,
        /// The pod.
        pod: String,
        /// How long they wait, in milliseconds.
        after_ms: u64,
    },
    /// Declare the queue `name` as `like` is declared (arguments, durability), and purge it.
    DeclareControlQueue {
        /// The new queue.
        name: String,
        /// The queue to copy; absent on a retry after it is gone: a durable classic queue.
        like: String,
    },
    /// Bind a queue.
    BindQueue {
        /// The queue.
        queue: String,
        /// Exchange, key and arguments.
        binding: Binding,
    },
    /// Remove a queue's binding; done when the broker no longer lists it.
    UnbindQueue {
        /// The queue.
        queue: String,
        /// Exchange, key and arguments.
        binding: Binding,
    },
    /// Bind the exchange `destination` so that it gets messages of `binding.source`.
    BindExchange {
        /// The exchange that receives.
        destination: String,
        /// Exchange, key and arguments.
        binding: Binding,
    },
    /// Remove a binding between exchanges.
    UnbindExchange {
        /// The exchange that received.
        destination: String,
        /// Exchange, key and arguments.
        binding: Binding,
    },
    /// Delete an exchange; fine when it does not exist.
    DeleteExchange {
        /// Its name.
        name: String,
    },
    /// Delete a queue that nobody consumes (checked by us: quorum queues refuse `if-unused`);
    /// fine when it does not exist.
    DeleteQueue {
        /// Its name.
        name: String,
    },
    /// Move all ready messages of a queue to the end of another, in order. Each is confirmed there
    /// before it is acknowledged here, so a crash in between repeats the last ones.
    Move {
        /// The queue that is emptied.
        from: String,
        /// The queue that gets them.
        to: String,
    },
    /// Drop all ready messages of a queue.
    Purge {
        /// The queue.
        queue: String,
    },
}

impl Binding {
    /// A binding without key and arguments, as between the migration's own fanout exchanges.
    pub fn plain(source: &str) -> Self {
        Self { source: source.to_owned(), routing_key: String::new(), arguments: String::new() }
    }
}

/// The type of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Classic queue.
    Classic,
    /// Quorum queue.
    Quorum,
    /// Stream, or a type this version does not know.
    Other(String),
}

/// A consumer as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumer {
    /// Consumer tag.
    pub tag: String,
    /// Whether the broker waits for acknowledgements.
    pub ack_required: bool,
    /// Whether it consumes exclusively.
    pub exclusive: bool,
    /// Name of its connection.
    pub connection: String,
    /// Network address of the peer.
    pub peer: String,
    /// Its connection's heartbeat in seconds; absent where there is none, or it is not known.
    #[serde(default)]
    pub heartbeat_s: Option<u64>,
}

impl Consumer {
    /// The peer's address as a pod has it.
    pub fn address(&self) -> &str {
        self.peer.trim_start_matches("::ffff:")
    }

    /// Whether it is the pod's at this address.
    pub fn is_at(&self, ip: &str) -> bool {
        self.address() == ip
    }
}

/// A queue as the broker sees it: identity and configuration, no counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Its type.
    pub kind: QueueType,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Belongs to one connection.
    pub exclusive: bool,
    /// Goes away with its last consumer.
    pub auto_delete: bool,
    /// Arguments of its declaration.
    pub arguments: Arguments,
    /// Effective definition of policies and operator policies.
    pub policy: Arguments,
}

/// An exchange as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exchange {
    /// `direct`, `fanout`, `topic`, `headers` or a plugin's.
    pub kind: String,
}

/// All the broker says of a primary queue before a migration touches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Survey {
    /// Version of the broker, as `4.0.5`.
    pub version: String,
    /// The primary queue; absent when it does not exist.
    pub queue: Option<Queue>,
    /// Its bindings, the default exchange's left out.
    pub bindings: Vec<Binding>,
    /// The exchanges those bindings name.
    pub exchanges: BTreeMap<String, Exchange>,
    /// Its consumers.
    pub consumers: Vec<Consumer>,
    /// What the primary queue has seen so far.
    pub totals: Totals,
    /// Messages acknowledged per second of late; absent when nothing is known.
    pub service_rate: Option<u64>,
    /// Whether the source's control queue exists.
    pub control_queue: bool,
    /// Memory or disk alarms in force, a sentence each.
    pub alarms: Vec<String>,
    /// Connections with an open transaction on a channel that publishes to a source exchange.
    pub transactions: Vec<String>,
    /// The management API keeps no statistics (`disable_stats`).
    pub statistics_disabled: bool,
}

/// How far the proof that a queue holds nothing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Emptiness {
    /// Not proved yet.
    Unproved,
    /// Neither ready nor unacknowledged messages, by the broker's own word.
    Proved,
}

/// A message to an application's control queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The pod whose control queue it goes to.
    pub pod: String,
    /// What it says.
    pub control: Control,
    /// The queue in which it waits first, as [`Topology::DeclareWaitingQueue`] declares it; absent: it goes
    /// to the control queue at once.
    pub waits_in: Option<String>,
}

impl Order {
    /// An order that goes to the pod at once.
    pub fn new(pod: &str, control: Control) -> Self {
        Self { pod: pod.to_owned(), control, waits_in: None }
    }

    /// The queue that it is published to.
    pub fn queue(&self) -> String {
        self.waits_in.clone().unwrap_or_else(|| control_queue(&self.pod))
    }
}
