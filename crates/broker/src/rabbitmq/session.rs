//! A session: its connections, its lock, and the trait's surface.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use shadow_protocol::broker::{
    Binding, Consumer, Counts, Emptiness, Order, Survey, Topology, Totals,
};
use shadow_protocol::effect::EffectId;
use shadow_protocol::janitor::Belongings;
use tokio::sync::Mutex;

use super::address::Address;
use super::client::{DEADLINE, Lane, RESOURCE_LOCKED, Role, Wire, code};
use super::emptiness::Proofs;
use super::management::Management;
use super::order::Publisher;
use super::table::name;
use crate::{Error, Session, Target};

/// How long [`Session::lock`] tries to depose a predecessor. The management API learns of a
/// connection up to five seconds late.
const LOCK_PATIENCE: Duration = Duration::from_secs(8);
/// Between two attempts at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Limit for an orderly end of a connection.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// A quorum queue that can't be asked within 250 ms is reported as 0 ready, 0 consumers; an answer
/// that took this long is not believed.
pub(super) const BELIEVABLE: Duration = Duration::from_millis(200);

pub(super) struct RabbitSession {
    pub(super) wire: Wire,
    pub(super) management: Management,
    pub(super) topology: Connection,
    /// Passive declares: many, quick, and fatal to their channel when the queue is missing.
    pub(super) probe: Lane,
    /// Changes.
    pub(super) work: Lane,
    /// Keeps the lock's channel open.
    lock: Mutex<Option<Channel>>,
    pub(super) publisher: Publisher,
    pub(super) proofs: Proofs,
}

impl RabbitSession {
    pub(super) async fn open(
        ca: Option<String>,
        target: &Target,
        migration: &str,
    ) -> Result<Self, Error> {
        let address = Address::parse(target)?;
        let management = Management::new(&address, ca.as_deref())?;
        let wire = Wire { address, ca, name: format!("shadow/{migration}"), session: unique_id() };
        let topology = wire.connect(Role::Topology).await?;
        Ok(Self {
            publisher: Publisher::default(),
            wire,
            management,
            topology,
            probe: Lane::default(),
            work: Lane::default(),
            lock: Mutex::default(),
            proofs: Proofs::default(),
        })
    }

    /// Declares the lock; `false` when another connection has it.
    async fn try_lock(&self, lock: &str) -> Result<bool, Error> {
        let attempted = format!("taking the lock {lock:?}");
        let channel = self.wire.run("opening a channel", self.topology.create_channel()).await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(name(lock)?, options, FieldTable::default());
        let outcome = tokio::time::timeout(DEADLINE, declared).await;
        match outcome {
            Ok(Ok(_)) => {
                *self.lock.lock().await = Some(channel);
                Ok(true)
            }
            Ok(Err(error)) if code(&error) == Some(RESOURCE_LOCKED) => Ok(false),
            Ok(Err(error)) => self.wire.run(&attempted, async { Err(error) }).await,
            Err(_) => Err(self.wire.timeout(&attempted, DEADLINE)),
        }
    }

    /// Closes what is left of this migration's earlier sessions.
    async fn depose(&self) -> Result<usize, Error> {
        let (ours, name) = (&self.wire.session, &self.wire.name);
        let closed = self.management.close_connections(|c| c.label() == name && !c.is_of(ours));
        closed.await
    }

    /// Who holds `lock`, as far as the management API knows already; `None`: our predecessor, or
    /// nobody it knows of.
    async fn stranger_holding(&self, lock: &str) -> Result<Option<String>, Error> {
        let path = ["queues", self.management.vhost(), lock];
        let queue: Option<serde_json::Value> = self.management.get(&path, "").await?;
        let owner = queue.as_ref().and_then(|queue| queue.pointer("/owner_pid_details/name"));
        let Some(owner) = owner.and_then(serde_json::Value::as_str) else { return Ok(None) };
        let connections = self.management.connections().await?;
        let holder = connections.iter().find(|connection| connection.name == owner);
        Ok(holder.map(|holder| holder.label().to_owned()).filter(|label| *label != self.wire.name))
    }

    /// A passive declare, and how long its answer took.
    pub(super) async fn look(&self, queue: &str) -> Result<(Option<Counts>, Duration), Error> {
        let (lease, channel) = self.probe.lease(&self.wire, &self.topology).await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = Instant::now();
        let attempted = format!("counting queue {queue:?}");
        let answer = lease.run_unless_missing(
            &attempted,
            channel.queue_declare(name(queue)?, options, FieldTable::default()),
        );
        let counts = answer.await?.map(|found| Counts {
            ready: found.message_count().into(),
            consumers: found.consumer_count(),
        });
        Ok((counts, asked.elapsed()))
    }

    /// Ready messages and consumers. An answer that can't be believed is asked for again.
    pub(super) async fn count(&self, queue: &str) -> Result<Option<Counts>, Error> {
        let begun = Instant::now();
        loop {
            let (counts, took) = self.look(queue).await?;
            if counts != Some(Counts::default()) || took < BELIEVABLE {
                return Ok(counts);
            }
            if begun.elapsed() >= DEADLINE {
                return Err(self.wire.timeout(&format!("counting queue {queue:?}"), DEADLINE));
            }
        }
    }
}

#[async_trait]
impl Session for RabbitSession {
    fn alive(&self) -> bool {
        self.topology.status().connected()
    }

    async fn lock(&self, lock: &str) -> Result<(), Error> {
        let begun = Instant::now();
        // Also when the lock is free: its holder may have left a connection that still publishes.
        self.depose().await?;
        let mut holder = None;
        while begun.elapsed() < LOCK_PATIENCE {
            if self.try_lock(lock).await? {
                return Ok(());
            }
            if self.depose().await? == 0 {
                holder = self.stranger_holding(lock).await?.or(holder);
                if holder.is_some() {
                    break;
                }
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        let holder = holder.unwrap_or_else(|| "a connection the broker does not name".to_owned());
        Err(Error::Locked { queue: lock.to_owned(), holder })
    }

    async fn survey(&self, primary: &str, control: &str) -> Result<Survey, Error> {
        self.make_survey(primary, control).await
    }

    async fn bindings(&self, queue: &str) -> Result<Vec<Binding>, Error> {
        self.queue_bindings(queue).await
    }

    async fn fed_by(&self, source: &str) -> Result<Vec<(String, bool)>, Error> {
        self.destinations(source).await
    }

    async fn consumers(&self, queue: &str) -> Result<Vec<Consumer>, Error> {
        self.queue_consumers(queue).await
    }

    async fn connections_from(&self, ip: &str) -> Result<Vec<String>, Error> {
        let connections = self.management.connections().await?;
        Ok(connections.into_iter().filter(|c| c.peer_host == ip).map(|c| c.name).collect())
    }

    async fn connected(&self, connection: &str) -> Result<bool, Error> {
        let found: Option<serde::de::IgnoredAny> =
            self.management.get(&["connections", connection], "disable_stats=true").await?;
        Ok(found.is_some())
    }

    async fn counts(&self, queue: &str) -> Result<Option<Counts>, Error> {
        self.count(queue).await
    }

    async fn totals(&self, queue: &str) -> Result<Totals, Error> {
        self.queue_totals(queue).await
    }

    async fn belongings(&self) -> Result<Belongings, Error> {
        self.list_belongings().await
    }

    async fn apply(&self, change: &Topology) -> Result<(), Error> {
        self.change(change).await
    }

    async fn order(&self, order: &Order, id: &EffectId) -> Result<(), Error> {
        if !self.alive() {
            // The publisher would connect anew: a deposed leader must not.
            let attempted = format!("ordering pod {:?}", order.pod);
            return Err(self.wire.failed(&attempted, "this session has lost its connection"));
        }
        self.publisher.send(&self.wire, &self.management, order, id).await
    }

    async fn emptiness(&self, queue: &str) -> Result<Emptiness, Error> {
        self.prove_empty(queue).await
    }

    async fn quiet(&self, queue: &str, stay: u32) -> Result<Emptiness, Error> {
        self.prove_quiet(queue, stay).await
    }

    async fn close(&self) {
        self.publisher.close().await;
        end(&self.topology).await;
    }
}

/// Ends a connection; one that does not answer is dropped by its owner.
pub(super) async fn end(connection: &Connection) {
    let closing = connection.close(200, "done".into());
    if !matches!(tokio::time::timeout(CLOSE_DEADLINE, closing).await, Ok(Ok(()))) {
        tracing::debug!("a broker connection did not close in order");
    }
}

/// A word that no other session has: the standard library's randomly keyed hasher.
fn unique_id() -> String {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}
