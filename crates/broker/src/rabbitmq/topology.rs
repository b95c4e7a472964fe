//! Changes of the topology, each idempotent.
//!
//! They go over the topology connection, so that they fail with it. The one exception: AMQP removes
//! a binding only if its arguments have exactly the types they were bound with, and the management
//! API's JSON does not tell them. What is still listed after the unbind is therefore deleted through
//! the management API, which finds it by its key.

use lapin::ExchangeKind;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeUnbindOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use serde::Deserialize;
use shadow_protocol::broker::{Arguments, Binding, Topology};
use shadow_protocol::names::control_queue;

use super::session::RabbitSession;
use super::table::{canonical, from_canonical, name, table};
use crate::Error;

/// "No delivery limit" as a number. A limit of -1 makes RabbitMQ 4 put returned messages at the
/// *end* of a quorum queue, out of order (`rabbit_fifo`: `#requeue{}` without a limit appends);
/// with any limit they go to the head.
pub(super) const DELIVERY_LIMIT: i32 = i32::MAX;

/// What a binding leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Queue,
    Exchange,
}

/// A binding as the management API lists it.
#[derive(Deserialize)]
pub(super) struct Listed {
    source: String,
    routing_key: String,
    pub(super) destination: String,
    pub(super) destination_type: String,
    #[serde(default)]
    arguments: Arguments,
    properties_key: String,
}

/// The part of a queue's description that a twin is declared from.
#[derive(Deserialize)]
struct Model {
    durable: bool,
    auto_delete: bool,
    #[serde(default)]
    exclusive: Option<bool>,
    #[serde(default)]
    arguments: Arguments,
}

impl Listed {
    pub(super) fn binding(self) -> Binding {
        let arguments = canonical(&self.arguments);
        Binding { source: self.source, routing_key: self.routing_key, arguments }
    }
}

impl RabbitSession {
    pub(super) async fn change(&self, change: &Topology) -> Result<(), Error> {
        match change {
            Topology::DeclareExchange { name, alternate } => {
                self.declare_exchange(name, alternate.as_deref()).await
            }
            Topology::DeclareSideQueue { name } => self.declare_side_queue(name).await,
            Topology::DeclareWaitingQueue { name, pod, after_ms } => {
                self.declare_waiting_queue(name, pod, *after_ms).await
            }
            Topology::DeclareControlQueue { name, like } => self.declare_twin(name, like).await,
            Topology::BindQueue { queue, binding } => self.bind(Kind::Queue, queue, binding).await,
            Topology::UnbindQueue { queue, binding } => {
                self.unbind(Kind::Queue, queue, binding).await
            }
            Topology::BindExchange { destination, binding } => {
                self.bind(Kind::Exchange, destination, binding).await
            }
            Topology::UnbindExchange { destination, binding } => {
                self.unbind(Kind::Exchange, destination, binding).await
            }
            Topology::DeleteExchange { name } => self.delete_exchange(name).await,
            Topology::DeleteQueue { name } => self.delete_queue(name).await,
            Topology::Move { from, to } => self.move_messages(from, to).await,
            Topology::Purge { queue } => self.purge(queue).await,
        }
    }

    /// The bindings of `queue`, the default exchange's left out, sorted.
    pub(super) async fn queue_bindings(&self, queue: &str) -> Result<Vec<Binding>, Error> {
        let listed = self.listed(Kind::Queue, queue).await?;
        let mut bindings: Vec<Binding> =
            listed.into_iter().map(Listed::binding).filter(|b| !b.source.is_empty()).collect();
        bindings.sort();
        Ok(bindings)
    }

    /// What `source` is bound to: `(name, is_queue)`.
    pub(super) async fn destinations(&self, source: &str) -> Result<Vec<(String, bool)>, Error> {
        let vhost = self.management.vhost();
        let path = ["exchanges", vhost, source, "bindings", "source"];
        let listed: Vec<Listed> = self.management.list(&path).await?;
        let mut all: Vec<_> =
            listed.into_iter().map(|b| (b.destination, b.destination_type == "queue")).collect();
        all.sort();
        all.dedup();
        Ok(all)
    }

    async fn listed(&self, kind: Kind, destination: &str) -> Result<Vec<Listed>, Error> {
        let vhost = self.management.vhost();
        match kind {
            Kind::Queue => self.management.list(&["queues", vhost, destination, "bindings"]).await,
            Kind::Exchange => {
                let path = ["exchanges", vhost, destination, "bindings", "destination"];
                self.management.list(&path).await
            }
        }
    }

    async fn declare_exchange(&self, exchange: &str, alternate: Option<&str>) -> Result<(), Error> {
        let options = ExchangeDeclareOptions {
            durable: true,
            internal: true,
            ..ExchangeDeclareOptions::default()
        };
        let mut arguments = FieldTable::default();
        if let Some(alternate) = alternate {
            let alternate = AMQPValue::LongString(LongString::from(alternate));
            arguments.insert("alternate-exchange".into(), alternate);
        }
        let attempted = format!("declaring exchange {exchange:?}");
        let (lease, channel) = self.work.lease(&self.wire, &self.topology).await?;
        let kind = ExchangeKind::Fanout;
        let done = channel.exchange_declare(name(exchange)?, kind, options, arguments);
        lease.run(&attempted, done).await
    }

    async fn declare_side_queue(&self, queue: &str) -> Result<(), Error> {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
        self.declare_queue(queue, true, false, arguments).await?;
        self.free_of_policies(queue).await
    }

    /// A quorum queue ends a message's wait to the millisecond as a classic one does *[measured on 4.0.5: 4 to
    /// 13 ms late]*.
    async fn declare_waiting_queue(
        &self,
        queue: &str,
        pod: &str,
        after_ms: u64,
    ) -> Result<(), Error> {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        let after = i64::try_from(after_ms).unwrap_or(i64::MAX);
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(after));
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(&control_queue(pod)));
        self.declare_queue(queue, true, false, arguments).await?;
        self.free_of_policies(queue).await
    }

    /// Declares `queue` as `like` is declared, and purges it.
    async fn declare_twin(&self, queue: &str, like: &str) -> Result<(), Error> {
        let path = ["queues", self.management.vhost(), like];
        let model: Option<Model> = self.management.get(&path, "").await?;
        let (durable, auto_delete, arguments) = match model {
            Some(model) if model.exclusive == Some(true) => {
                return Err(Error::Invalid {
                    what: format!("the control queue {like:?}"),
                    why: "it is exclusive, so no twin of it can be declared ahead of the target; \
                          declare it durable"
                        .to_owned(),
                });
            }
            Some(model) => (model.durable, model.auto_delete, table(&model.arguments)?),
            None => (true, false, FieldTable::default()),
        };
        self.declare_queue(queue, durable, auto_delete, arguments).await?;
        self.purge(queue).await
    }

    async fn declare_queue(
        &self,
        queue: &str,
        durable: bool,
        auto_delete: bool,
        arguments: FieldTable,
    ) -> Result<(), Error> {
        let options =
            QueueDeclareOptions { durable, auto_delete, ..QueueDeclareOptions::default() };
        let (lease, channel) = self.work.lease(&self.wire, &self.topology).await?;
        let done = channel.queue_declare(name(queue)?, options, arguments);
        lease.run(&format!("declaring queue {queue:?}"), done).await.map(|_| ())
    }

    async fn bind(&self, kind: Kind, destination: &str, binding: &Binding) -> Result<(), Error> {
        let attempted = format!("binding {destination:?} to exchange {:?}", binding.source);
        let (lease, channel) = self.work.lease(&self.wire, &self.topology).await?;
        let (to, from) = (name(destination)?, name(&binding.source)?);
        let (key, arguments) = (name(&binding.routing_key)?, from_canonical(&binding.arguments)?);
        match kind {
            Kind::Queue => {
                let options = QueueBindOptions::default();
                lease.run(&attempted, channel.queue_bind(to, from, key, options, arguments)).await
            }
            Kind::Exchange => {
                let options = ExchangeBindOptions::default();
                let done = channel.exchange_bind(to, from, key, options, arguments);
                lease.run(&attempted, done).await
            }
        }
    }

    async fn unbind(&self, kind: Kind, destination: &str, binding: &Binding) -> Result<(), Error> {
        let attempted = format!("unbinding {destination:?} from exchange {:?}", binding.source);
        let (lease, channel) = self.work.lease(&self.wire, &self.topology).await?;
        let (to, from) = (name(destination)?, name(&binding.source)?);
        let (key, arguments) = (name(&binding.routing_key)?, from_canonical(&binding.arguments)?);
        match kind {
            Kind::Queue => {
                let done = channel.queue_unbind(to, from, key, arguments);
                lease.run_unless_missing(&attempted, done).await?;
            }
            Kind::Exchange => {
                let options = ExchangeUnbindOptions::default();
                let done = channel.exchange_unbind(to, from, key, options, arguments);
                lease.run_unless_missing(&attempted, done).await?;
            }
        }
        self.unbind_the_rest(kind, destination, binding).await?;
        if self.still_bound(kind, destination, binding).await?.is_empty() {
            return Ok(());
        }
        Err(self.wire.failed(&attempted, "the binding is listed still"))
    }

    /// Keys of the bindings that are listed although they have been removed.
    async fn still_bound(
        &self,
        kind: Kind,
        destination: &str,
        binding: &Binding,
    ) -> Result<Vec<String>, Error> {
        let mut keys = Vec::new();
        for listed in self.listed(kind, destination).await? {
            let key = listed.properties_key.clone();
            if listed.binding() == *binding {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    async fn unbind_the_rest(
        &self,
        kind: Kind,
        destination: &str,
        binding: &Binding,
    ) -> Result<(), Error> {
        let vhost = self.management.vhost();
        let letter = if kind == Kind::Queue { "q" } else { "e" };
        for key in self.still_bound(kind, destination, binding).await? {
            let path = ["bindings", vhost, "e", &binding.source, letter, destination, &key];
            self.management.delete(&path).await?;
        }
        Ok(())
    }

    async fn delete_exchange(&self, exchange: &str) -> Result<(), Error> {
        let (lease, channel) = self.work.lease(&self.wire, &self.topology).await?;
        let done = channel.exchange_delete(name(exchange)?, ExchangeDeleteOptions::default());
        lease.run_unless_missing(&format!("deleting exchange {exchange:?}"), done).await?;
        Ok(())
    }

    async fn delete_queue(&self, queue: &str) -> Result<(), Error> {
        let attempted = format!("deleting queue {queue:?}");
        let Some(counts) = self.believable_counts(queue).await? else {
            return self.drop_own_policy(queue).await;
        };
        if counts.consumers > 0 {
            let answer = format!("it still has {} consumer(s)", counts.consumers);
            return Err(self.wire.failed(&attempted, answer));
        }
        let (lease, channel) = self.work.lease(&self.wire, &self.topology).await?;
        let done = channel.queue_delete(name(queue)?, QueueDeleteOptions::default());
        lease.run_unless_missing(&attempted, done).await?;
        self.drop_own_policy(queue).await
    }

    /// A queue that is not there has nothing in it.
    async fn purge(&self, queue: &str) -> Result<(), Error> {
        let (lease, channel) = self.work.lease(&self.wire, &self.topology).await?;
        let done = channel.queue_purge(name(queue)?, QueuePurgeOptions::default());
        lease.run_unless_missing(&format!("purging queue {queue:?}"), done).await.map(|_| ())
    }
}
