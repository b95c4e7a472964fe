//! Applications and publishers around the broker in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use shadow_broker::conformance::{Consumer, Failure, Line, Publisher, Received, Rig};
use shadow_broker::memory::core::{
    ConnectionId, ConsumeOptions, ConsumerId, Destination, ExchangeKind, ExchangeOptions, Kind,
    Publish, Published, QueueOptions, Refusal, Settings,
};
use shadow_broker::memory::{Core, MemoryBroker, MemoryConnector, Payload};
use shadow_broker::{Connector, Target};
use shadow_protocol::broker::{Binding, QueueType};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Until a publish is confirmed.
const ROUND_TRIP: Duration = Duration::from_millis(1);
/// Where the applications are.
const PEER: &str = "10.1.0.1";

/// A broker in memory.
pub struct MemoryRig {
    pub broker: MemoryBroker,
    lines: AtomicU32,
}

impl Default for MemoryRig {
    fn default() -> Self {
        Self { broker: MemoryBroker::new(Settings::default()), lines: AtomicU32::new(0) }
    }
}

impl MemoryRig {
    fn connect(&self) -> Result<Client, Failure> {
        let connected = self.broker.connect(PEER, "rig");
        let connection = connected.ok_or_else(|| Failure("no way to the broker".to_owned()))?;
        Ok(Client { broker: self.broker.clone(), connection })
    }

    /// Does something on a connection of its own.
    fn once(
        &self,
        act: impl FnOnce(&mut Core, ConnectionId) -> Result<(), Refusal>,
    ) -> Result<(), Failure> {
        let client = self.connect()?;
        Ok(self.broker.with(|core| act(core, client.connection))?)
    }
}

/// A connection that ends with its owner.
struct Client {
    broker: MemoryBroker,
    connection: ConnectionId,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.broker.with(|core| core.close(self.connection));
    }
}

#[async_trait]
impl Rig for MemoryRig {
    fn connector(&self) -> Arc<dyn Connector> {
        Arc::new(MemoryConnector(self.broker.clone()))
    }

    fn target(&self) -> Target {
        Target { url: "memory://10.2.0.1".to_owned(), management_url: None }
    }

    async fn line(&self) -> Result<Line, Failure> {
        let peer = format!("line-{}", self.lines.fetch_add(1, Ordering::Relaxed));
        let target = Target { url: format!("memory://{peer}"), management_url: None };
        let (broker, cut) = (self.broker.clone(), CancellationToken::new());
        let ending = cut.clone();
        tokio::spawn(async move {
            ending.cancelled().await;
            broker.sever(&peer);
        });
        Ok(Line { target, cut })
    }

    async fn declare_exchange(&self, name: &str, kind: &str) -> Result<(), Failure> {
        let kind = match kind {
            "direct" => ExchangeKind::Direct,
            "fanout" => ExchangeKind::Fanout,
            "topic" => ExchangeKind::Topic,
            "headers" => ExchangeKind::Headers,
            other => return Err(Failure(format!("no such type of exchange: {other}"))),
        };
        let options = ExchangeOptions::durable(kind);
        self.once(|core, client| core.declare_exchange(client, name, options))
    }

    async fn declare_queue(&self, name: &str, kind: &QueueType) -> Result<(), Failure> {
        let kind = if *kind == QueueType::Quorum { Kind::Quorum } else { Kind::Classic };
        let options = QueueOptions::durable(kind);
        self.once(|core, client| core.declare_queue(client, name, options).map(|_| ()))
    }

    async fn bind(&self, queue: &str, binding: &Binding) -> Result<(), Failure> {
        let queue = Destination::Queue(queue.into());
        self.once(|core, client| core.bind(client, &queue, binding))
    }

    async fn publisher(
        &self,
        exchange: &str,
        key: &str,
        _confirms: bool,
    ) -> Result<Box<dyn Publisher>, Failure> {
        let (client, exchange, key) = (self.connect()?, exchange.to_owned(), key.to_owned());
        Ok(Box::new(MemoryPublisher { client, exchange, key }))
    }

    async fn consumer(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, Failure> {
        let client = self.connect()?;
        let options = ConsumeOptions { prefetch: prefetch.into(), ..ConsumeOptions::default() };
        let changes = self.broker.changes();
        let id = self.broker.with(|core| core.consume(client.connection, queue, options))?;
        Ok(Box::new(MemoryConsumer { client, id, changes, cancelled: false }))
    }

    async fn remove(&self, queues: &[&str], exchanges: &[&str]) -> Result<(), Failure> {
        self.once(|core, client| {
            for queue in queues {
                core.delete_queue(client, queue, false)?;
            }
            exchanges.iter().try_for_each(|exchange| core.delete_exchange(client, exchange))
        })
    }
}

struct MemoryPublisher {
    client: Client,
    exchange: String,
    key: String,
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn publish(&mut self, payload: &[u8]) -> Result<(), Failure> {
        tokio::time::sleep(ROUND_TRIP).await;
        let message = Publish::one(&self.exchange, &self.key, Payload(payload.into()));
        let Client { broker, connection } = &self.client;
        match broker.with(|core| core.publish(*connection, message))? {
            Published::Arrived(1..) => Ok(()),
            other => Err(Failure(format!("not accepted: {other:?}"))),
        }
    }
}

struct MemoryConsumer {
    client: Client,
    id: ConsumerId,
    changes: watch::Receiver<()>,
    cancelled: bool,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Option<Received>, Failure> {
        loop {
            self.changes.mark_unchanged();
            match self.client.broker.take(self.id) {
                Ok(Some(found)) => {
                    let payload = found.first.0.to_vec();
                    return Ok(Some(Received { tag: found.tag, payload }));
                }
                Ok(None) if self.cancelled => return Ok(None),
                Err(Refusal::ConsumerGone) => return Ok(None),
                Ok(None) => self.changes.changed().await?,
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    async fn ack(&mut self, tag: u64, multiple: bool) -> Result<(), Failure> {
        Ok(self.client.broker.with(|core| core.ack(self.id, tag, multiple)).map(|_| ())?)
    }

    async fn cancel(&mut self) -> Result<(), Failure> {
        self.cancelled = true;
        Ok(self.client.broker.with(|core| core.cancel(self.id))?)
    }

    async fn close(&mut self) {
        self.client.broker.with(|core| core.close(self.client.connection));
    }
}
