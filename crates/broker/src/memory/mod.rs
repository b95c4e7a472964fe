//! `RabbitMQ`'s semantics in memory, for simulators, models and tests; never part of the operator.
//!
//! [`core`] is the broker, a pure state machine; [`MemoryBroker`] shares one between tasks and moves
//! its time by tokio's clock; [`MemoryConnector`] opens sessions on it. A client's address is the
//! host of its URL, so whoever wants to cut one client off gives it a URL of its own. What a session
//! does to the state machine is in functions of their own, so that a simulator with another clock
//! does the same: [`topology`], [`moving`], [`proofs`], [`survey`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use shadow_protocol::control::Control;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Connector, Error, Session, Target};

pub mod core;
mod fault;
pub mod moving;
pub mod proofs;
mod session;
pub mod survey;
pub mod topology;

pub use fault::{Call, Fault, Hook, Operation};

/// A message's body. No message follows from another: each is a run of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Payload(pub Arc<[u8]>);

/// What sessions can send: messages that an order can be.
pub trait Wire: core::Content + Send + Sync + 'static {
    /// The message that carries `control` to an application.
    fn order(control: &Control) -> Result<Self, serde_json::Error>;
}

impl Wire for Payload {
    fn order(control: &Control) -> Result<Self, serde_json::Error> {
        serde_json::to_vec(control).map(|body| Self(body.into()))
    }
}

impl core::Content for Payload {
    fn later(&self, _by: u64) -> Self {
        self.clone()
    }

    fn continues(&self, _by: u64, _next: &Self) -> bool {
        false
    }
}

/// The broker's state machine, with messages that have a body.
pub type Core = core::Broker<Payload>;

/// A broker, shared by all who use it.
pub struct MemoryBroker<M = Payload>(Arc<Shared<M>>);

impl<M> Clone for MemoryBroker<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<M> {
    begun: Instant,
    state: Mutex<State<M>>,
    changes: watch::Sender<()>,
}

struct State<M> {
    core: core::Broker<M>,
    /// Addresses that can't reach the broker any more.
    severed: BTreeSet<String>,
    hook: Option<Hook>,
}

impl<M: core::Content> MemoryBroker<M> {
    /// An empty broker whose time begins now.
    pub fn new(settings: core::Settings) -> Self {
        let state =
            State { core: core::Broker::new(settings), severed: BTreeSet::new(), hook: None };
        let changes = watch::Sender::new(());
        Self(Arc::new(Shared { begun: Instant::now(), state: Mutex::new(state), changes }))
    }

    /// Does something to the broker at this instant; whoever waits for a change looks again.
    pub fn with<T>(&self, act: impl FnOnce(&mut core::Broker<M>) -> T) -> T {
        let done = self.quietly(act);
        self.0.changes.send_replace(());
        done
    }

    /// The same for what concerns nobody else: nobody looks again.
    pub fn quietly<T>(&self, act: impl FnOnce(&mut core::Broker<M>) -> T) -> T {
        let now = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let core = &mut self.state().core;
        core.advance(now);
        act(core)
    }

    /// The next message that reaches `consumer`. It concerns nobody else, so nobody looks again.
    pub fn take(
        &self,
        consumer: core::ConsumerId,
    ) -> Result<Option<core::Delivery<M>>, core::Refusal> {
        self.state().core.take(consumer, 1)
    }

    /// Tells of everything that is done to the broker.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }

    /// Has `hook` decide about each call of each session from now on.
    pub fn set_hook(&self, hook: Hook) {
        self.state().hook = Some(hook);
    }

    /// Ends the connections from the address `peer`, and it gets no other.
    pub fn sever(&self, peer: &str) {
        self.state().severed.insert(peer.to_owned());
        self.with(|core| {
            let theirs = |(id, from, _): (_, &core::Name, _)| (**from == *peer).then_some(id);
            let ending: Vec<_> = core.connections().filter_map(theirs).collect();
            for connection in ending {
                core.close(connection);
            }
        });
    }

    /// Connects from `peer`; `None` if it can't reach the broker.
    pub fn connect(&self, peer: &str, label: &str) -> Option<core::ConnectionId> {
        let mut state = self.state();
        (!state.severed.contains(peer)).then(|| state.core.connect(peer, label))
    }

    fn hook(&self) -> Option<Hook> {
        self.state().hook.clone()
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        // Nothing panics half-way through a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens sessions with a broker in memory.
pub struct MemoryConnector<M = Payload>(pub MemoryBroker<M>);

#[async_trait]
impl<M: Wire> Connector for MemoryConnector<M> {
    async fn open(&self, target: &Target, name: &str) -> Result<Box<dyn Session>, Error> {
        Ok(Box::new(session::MemorySession::open(&self.0, target, name).await?))
    }
}

/// The name under which the broker lists a connection.
fn connection_name(peer: &str, connection: core::ConnectionId) -> String {
    format!("{peer}:{} -> broker:5672", connection.0)
}
