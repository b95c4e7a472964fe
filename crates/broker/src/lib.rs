//! The message broker, behind one trait.
//!
//! A [`Session`] is one migration's connections to one broker. Closing it never touches another
//! migration's. It is opened by a [`Connector`] and holds the fence: an exclusive queue on the
//! topology connection (see `docs/handoff.md`, "Names").

use async_trait::async_trait;
use shadow_protocol::broker::{
    Binding, Consumer, Counts, Emptiness, Order, Survey, Topology, Totals,
};
use shadow_protocol::effect::EffectId;
use shadow_protocol::janitor::Belongings;

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
#[cfg(feature = "memory")]
pub mod memory;
pub mod proof;
pub mod rabbitmq;

pub use error::Error;

/// Where a broker is and how to log in. Its `Debug` never shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// `amqp://` or `amqps://` URL, vhost and credentials included.
    pub url: String,
    /// Base URL of the management API; absent: the broker's host and credentials, that is
    /// `http://<host>:15672` for `amqp://` and `https://<host>:15671` for `amqps://`.
    pub management_url: Option<String>,
}

/// Opens sessions.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to `target` on behalf of the migration `name` (shown as the connections' name).
    async fn open(&self, target: &Target, name: &str) -> Result<Box<dyn Session>, Error>;
}

/// One migration's connections to a broker.
///
/// Every call has a deadline of its own and fails with the operation and the object named.
#[async_trait]
pub trait Session: Send + Sync {
    /// Whether the topology connection, and with it the lock, is still ours.
    fn alive(&self) -> bool;

    /// Declares the exclusive lock queue `lock`. Held already by this session: fine. Held by a
    /// connection whose client name is this migration's (an operator that died or was deposed):
    /// closes that connection through the management API and tries again.
    /// Held by anyone else: [`Error::Locked`].
    async fn lock(&self, lock: &str) -> Result<(), Error>;

    /// All there is to know of the queue `primary` before anything is touched, and of the control
    /// queue `control`.
    async fn survey(&self, primary: &str, control: &str) -> Result<Survey, Error>;

    /// The bindings of `queue` now, the default exchange's left out, sorted.
    async fn bindings(&self, queue: &str) -> Result<Vec<Binding>, Error>;

    /// The queues and exchanges to which the exchange `source` is bound: `(name, is_queue)`.
    async fn fed_by(&self, source: &str) -> Result<Vec<(String, bool)>, Error>;

    /// The consumers of `queue` by the management API (may lag behind by seconds).
    async fn consumers(&self, queue: &str) -> Result<Vec<Consumer>, Error>;

    /// Names of the client connections whose peer address is `ip`, management API.
    async fn connections_from(&self, ip: &str) -> Result<Vec<String>, Error>;

    /// Whether the client connection of this name, as [`Self::consumers`] gives it, still lives.
    async fn connected(&self, connection: &str) -> Result<bool, Error>;

    /// Ready messages and consumers at this instant; `None` when the queue does not exist.
    async fn counts(&self, queue: &str) -> Result<Option<Counts>, Error>;

    /// What `queue` has seen since it exists, by the broker's statistics: they lag by some seconds.
    /// Nothing, when it does not exist.
    async fn totals(&self, queue: &str) -> Result<Totals, Error>;

    /// What migrations have made on the vhost, whoever they were, and the control queues.
    async fn belongings(&self) -> Result<Belongings, Error>;

    /// Changes the topology; returns when the broker has done it.
    async fn apply(&self, change: &Topology) -> Result<(), Error>;

    /// Publishes an order, persistent, mandatory and confirmed, on a connection of its own. Its
    /// message ID is the effect's: the application may get it twice and can tell.
    async fn order(&self, order: &Order, id: &EffectId) -> Result<(), Error>;

    /// Whether the broker proves that `queue` holds neither ready nor unacknowledged messages: one
    /// question, answered now. Three proofs, the first that applies (see `docs/handoff.md`, "Proof
    /// that a queue is empty"):
    ///
    /// 1. a classic queue tells both counts itself, live;
    /// 2. a quorum queue with no consumer left, counts live as well: a cancelled consumer stays in
    ///    the count until its last acknowledgement;
    /// 3. anything else takes the slow proof by statistics: each call is one more sample, the first
    ///    begins it, and any sign of life in the queue begins it again.
    async fn emptiness(&self, queue: &str) -> Result<Emptiness, Error>;

    /// Whether the broker proves that who has left `queue` has acknowledged all that it was delivered,
    /// however many messages wait in it; `stay` other consumers go on. As [`Self::emptiness`], by the
    /// first two proofs only: where neither applies, the answer is never yes.
    ///
    /// A classic queue tells at one instant that nothing is unacknowledged at all: who has left holds
    /// nothing from then on. A quorum queue counts a cancelled consumer until its last acknowledgement:
    /// `stay` are left.
    async fn quiet(&self, queue: &str, stay: u32) -> Result<Emptiness, Error>;

    /// Closes the connections; the lock goes with them.
    async fn close(&self);
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Target(credentials hidden)")
    }
}
