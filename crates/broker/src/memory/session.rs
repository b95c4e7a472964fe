//! A session: its connections, its lock, and the trait's surface.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use shadow_protocol::broker::{
    Binding, Consumer, Counts, Emptiness, Order, Survey, Topology, Totals,
};
use shadow_protocol::effect::EffectId;
use shadow_protocol::janitor::Belongings;

use super::core::{Broker, ConnectionId, Destination, Publish, Published, Refusal};
use super::fault::{Call, Fault, Operation};
use super::proofs::{self, Proofs};
use super::topology::{self, Obstacle};
use super::{MemoryBroker, Wire, survey};
use crate::{Error, Session, Target};

/// How long the way to the broker and back takes.
const ROUND_TRIP: Duration = Duration::from_millis(1);
/// Limit for one operation.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct MemorySession<M: Wire> {
    pub(super) broker: MemoryBroker<M>,
    /// Where it connects from.
    pub(super) peer: String,
    pub(super) migration: String,
    /// Holds the lock.
    pub(super) topology: ConnectionId,
    /// Publishes orders. Opened anew with the next one, once it is closed.
    publisher: Mutex<ConnectionId>,
    /// The slow proofs under way, by queue.
    proofs: Mutex<Proofs>,
}

impl<M: Wire> MemorySession<M> {
    pub(super) async fn open(
        broker: &MemoryBroker<M>,
        target: &Target,
        migration: &str,
    ) -> Result<Self, Error> {
        let url = url::Url::parse(&target.url);
        let peer = url.ok().and_then(|url| url.host_str().map(str::to_owned));
        let invalid = || Error::Invalid {
            what: "the broker's URL".to_owned(),
            why: "it has no host, which is where the client is".to_owned(),
        };
        let peer = peer.ok_or_else(invalid)?;
        let fault = ask(broker, migration, Operation::Open).await;
        let gone = || unreachable(Operation::Open, &peer, Refusal::ConnectionGone);
        let connect = || broker.connect(&peer, &label(migration)).ok_or_else(gone);
        match fault {
            Fault::Before | Fault::Cut => return Err(gone()),
            Fault::Silence { done: false } => std::future::pending().await,
            Fault::Pass | Fault::After | Fault::Silence { done: true } => {}
        }
        let (topology, publisher) = (connect()?, connect()?);
        match fault {
            Fault::After => return Err(gone()),
            Fault::Silence { .. } => std::future::pending().await,
            Fault::Pass | Fault::Before | Fault::Cut => {}
        }
        let (broker, migration) = (broker.clone(), migration.to_owned());
        let publisher = Mutex::new(publisher);
        Ok(Self { broker, peer, migration, topology, publisher, proofs: Mutex::default() })
    }

    /// The way to the broker: what the hook says, and whether the connection is still ours.
    async fn enter(&self, operation: Operation<'_>) -> Result<Fault, Error> {
        let fault = ask(&self.broker, &self.migration, operation).await;
        match fault {
            Fault::Cut => self.end(),
            Fault::Before => return Err(self.lost(operation)),
            Fault::Silence { done: false } => std::future::pending().await,
            Fault::Pass | Fault::After | Fault::Silence { done: true } => {}
        }
        if self.alive() { Ok(fault) } else { Err(self.lost(operation)) }
    }

    /// The way back.
    async fn leave(&self, operation: Operation<'_>, fault: Fault) -> Result<(), Error> {
        match fault {
            Fault::After => Err(self.lost(operation)),
            Fault::Silence { .. } => std::future::pending().await,
            Fault::Pass | Fault::Before | Fault::Cut => Ok(()),
        }
    }

    /// One call that takes effect in one instant, on the topology connection.
    async fn call<T>(
        &self,
        operation: Operation<'_>,
        effect: impl FnOnce(&mut Broker<M>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let fault = self.enter(operation).await?;
        let done = self.broker.with(|core| {
            // The connection may have gone since: a deposed session must do nothing.
            if core.connected(self.topology) { effect(core) } else { Err(self.lost(operation)) }
        })?;
        self.leave(operation, fault).await?;
        Ok(done)
    }

    fn lost(&self, operation: Operation<'_>) -> Error {
        unreachable(operation, &self.peer, Refusal::ConnectionGone)
    }

    pub(super) fn timeout(&self, attempted: String) -> Error {
        Error::Timeout { attempted, host: self.peer.clone(), seconds: DEADLINE.as_secs() }
    }

    pub(super) fn failed(&self, attempted: String, answer: impl Into<String>) -> Error {
        Error::Failed { attempted, host: self.peer.clone(), answer: answer.into() }
    }

    /// A refusal as the trait has it.
    pub(super) fn refused(&self, attempted: String, refusal: Refusal) -> Error {
        match refusal {
            Refusal::ConnectionGone => {
                let (host, source) = (self.peer.clone(), Box::new(refusal));
                Error::Unreachable { attempted, host, source }
            }
            refusal => self.failed(attempted, refusal.to_string()),
        }
    }

    /// An obstacle as the trait has it.
    fn prevented(&self, attempted: String, obstacle: Obstacle) -> Error {
        match obstacle {
            Obstacle::Refused(refusal) => self.refused(attempted, refusal),
            Obstacle::InUse { .. } => self.failed(attempted, obstacle.to_string()),
            Obstacle::Unanswered(_) => self.timeout(attempted),
            Obstacle::Exclusive(queue) => Error::Invalid {
                what: format!("the control queue {queue:?}"),
                why: "it is exclusive, so no twin of it can be declared; declare it durable"
                    .to_owned(),
            },
        }
    }

    /// Whoever waits for a change looks again when the message that has just come to `queue` leaves it.
    fn expires(&self, queue: &str) {
        let expiry = |core: &mut Broker<M>| core.queue(queue)?.expiry.as_ref().map(|it| it.after);
        let Some(after) = self.broker.quietly(expiry) else { return };
        let broker = self.broker.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            broker.with(|_| ());
        });
    }

    fn publisher(&self) -> MutexGuard<'_, ConnectionId> {
        self.publisher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.broker.with(|core| [self.topology, *self.publisher()].map(|it| core.close(it)));
    }

    fn take_lock(&self, core: &mut Broker<M>, lock: &str) -> Result<(), Error> {
        let ours = [self.topology, *self.publisher()];
        match topology::lock(core, self.topology, &ours, &label(&self.migration), lock) {
            Ok(()) => Ok(()),
            Err(Refusal::Locked { .. }) => {
                let owner = core.owner(lock);
                let holder = core.connections().find(|(id, ..)| Some(*id) == owner);
                let holder = holder.map(|(_, _, label)| label.to_string()).unwrap_or_default();
                Err(Error::Locked { queue: lock.to_owned(), holder })
            }
            Err(refusal) => Err(self.refused(format!("taking the lock {lock:?}"), refusal)),
        }
    }

    /// Ready messages and consumers.
    pub(super) fn count(&self, core: &mut Broker<M>, queue: &str) -> Result<Option<Counts>, Error> {
        let counted = topology::count(core, self.topology, queue);
        counted.map_err(|obstacle| self.prevented(format!("counting queue {queue:?}"), obstacle))
    }

    fn prove(&self, queue: &str, proved: Result<Emptiness, Obstacle>) -> Result<Emptiness, Error> {
        let attempted = || format!("asking queue {queue:?} what it holds");
        proved.map_err(|obstacle| self.prevented(attempted(), obstacle))
    }

    fn change(&self, core: &mut Broker<M>, change: &Topology) -> Result<(), Error> {
        topology::change(core, self.topology, change)
            .map_err(|it| self.prevented(format!("changing the topology ({change:?})"), it))
    }

    /// Publishes an order. Under an alarm it waits; what is still unread at the deadline, the
    /// broker discards with the connection, so that nothing arrives later.
    async fn publish(&self, order: &Order) -> Result<(), Error> {
        let queue = order.queue();
        let attempted = || format!("publishing an order to {queue:?}");
        let message = M::order(&order.control)
            .map_err(|error| self.failed(attempted(), error.to_string()))?;
        let message = Publish::one("", &queue, message);
        let outcome = self.broker.with(|core| {
            if !core.connected(self.topology) {
                return Err(Refusal::ConnectionGone);
            }
            let mut publisher = self.publisher();
            if !core.connected(*publisher) {
                *publisher = core.connect(&self.peer, &label(&self.migration));
            }
            core.publish(*publisher, message)
        });
        match outcome.map_err(|refusal| self.refused(attempted(), refusal))? {
            Published::Arrived(1..) => {
                self.expires(&queue);
                Ok(())
            }
            Published::Arrived(0) | Published::Pending(_) => {
                Err(self.failed(attempted(), "the queue does not exist"))
            }
            Published::Blocked => {
                let mut changes = self.broker.changes();
                let lifted = changes.wait_for(|()| !self.broker.state().core.alarm());
                if tokio::time::timeout(DEADLINE, lifted).await.is_err() {
                    self.broker.with(|core| core.close_by_broker(*self.publisher()));
                    return Err(self.timeout(attempted()));
                }
                Ok(())
            }
        }
    }
}

#[async_trait]
impl<M: Wire> Session for MemorySession<M> {
    fn alive(&self) -> bool {
        self.broker.state().core.connected(self.topology)
    }

    async fn lock(&self, lock: &str) -> Result<(), Error> {
        self.call(Operation::Lock(lock), |core| self.take_lock(core, lock)).await
    }

    async fn survey(&self, primary: &str, control: &str) -> Result<Survey, Error> {
        self.call(Operation::Survey(primary), |core| Ok(survey::survey(core, primary, control)))
            .await
    }

    async fn bindings(&self, queue: &str) -> Result<Vec<Binding>, Error> {
        let to = Destination::Queue(queue.into());
        self.call(Operation::Bindings(queue), |core| Ok(core.bindings(&to))).await
    }

    async fn fed_by(&self, source: &str) -> Result<Vec<(String, bool)>, Error> {
        self.call(Operation::FedBy(source), |core| Ok(survey::fed_by(core, source))).await
    }

    async fn consumers(&self, queue: &str) -> Result<Vec<Consumer>, Error> {
        self.call(Operation::Consumers(queue), |core| Ok(survey::consumers(core, queue))).await
    }

    async fn connections_from(&self, ip: &str) -> Result<Vec<String>, Error> {
        let operation = Operation::ConnectionsFrom(ip);
        self.call(operation, |core| Ok(survey::connections(core, |peer, _| peer == ip))).await
    }

    async fn connected(&self, connection: &str) -> Result<bool, Error> {
        let there = |core: &mut Broker<M>| {
            Ok(!survey::connections(core, |_, name| name == connection).is_empty())
        };
        self.call(Operation::Connected(connection), there).await
    }

    async fn counts(&self, queue: &str) -> Result<Option<Counts>, Error> {
        self.call(Operation::Counts(queue), |core| self.count(core, queue)).await
    }

    async fn totals(&self, queue: &str) -> Result<Totals, Error> {
        self.call(Operation::Totals(queue), |core| Ok(survey::totals(core, queue))).await
    }

    async fn belongings(&self) -> Result<Belongings, Error> {
        self.call(Operation::Belongings, |core| Ok(survey::belongings(core))).await
    }

    async fn apply(&self, change: &Topology) -> Result<(), Error> {
        let operation = Operation::Apply(change);
        let Topology::Move { from, to } = change else {
            return self.call(operation, |core| self.change(core, change)).await;
        };
        let fault = self.enter(operation).await?;
        self.move_messages(from, to).await?;
        self.leave(operation, fault).await
    }

    async fn order(&self, order: &Order, _: &EffectId) -> Result<(), Error> {
        let fault = self.enter(Operation::Order(order)).await?;
        self.publish(order).await?;
        self.leave(Operation::Order(order), fault).await
    }

    async fn emptiness(&self, queue: &str) -> Result<Emptiness, Error> {
        let prove = |core: &mut Broker<M>| {
            let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
            self.prove(queue, proofs.empty(core, self.topology, queue))
        };
        self.call(Operation::Emptiness(queue), prove).await
    }

    async fn quiet(&self, queue: &str, stay: u32) -> Result<Emptiness, Error> {
        let prove = |core: &mut Broker<M>| {
            self.prove(queue, proofs::quiet(core, self.topology, queue, stay))
        };
        self.call(Operation::Quiet(queue), prove).await
    }

    async fn close(&self) {
        self.end();
    }
}

impl<M: Wire> Drop for MemorySession<M> {
    /// As a client's sockets close with it.
    fn drop(&mut self) {
        self.end();
    }
}

async fn ask<M: Wire>(
    broker: &MemoryBroker<M>,
    migration: &str,
    operation: Operation<'_>,
) -> Fault {
    tokio::time::sleep(ROUND_TRIP).await;
    let hook = broker.hook();
    hook.map_or(Fault::Pass, |hook| hook(&Call { migration, operation }))
}

/// What a migration's connections call themselves.
pub(super) fn label(migration: &str) -> String {
    format!("shadow/{migration}")
}

fn unreachable(operation: Operation<'_>, host: &str, refusal: Refusal) -> Error {
    let (attempted, host) = (format!("{operation:?}"), host.to_owned());
    Error::Unreachable { attempted, host, source: Box::new(refusal) }
}
