//! A primary queue with its feed, and the topology steps of a migration on it.

use std::collections::BTreeSet;
use std::time::Duration;

use shadow_protocol::broker::{Binding, Counts, Emptiness, QueueType, Topology};
use shadow_protocol::names::Names;
use tokio::time::Instant;

use super::{Failure, PATIENCE, Stage, ensure, eventually};
use crate::Session;

/// What feeds the primary queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feed {
    Fanout,
    /// Two bindings, both of which match each message.
    Topic,
}

/// Exchange, queue and session.
pub(super) struct Plant {
    pub(super) stage: Stage,
    pub(super) names: Names,
    pub(super) exchange: String,
    pub(super) bindings: Vec<Binding>,
    pub(super) session: Box<dyn Session>,
}

/// Routing key of all messages.
pub(super) const KEY: &str = "a.b";

impl Plant {
    pub(super) async fn build(stage: Stage, kind: &QueueType, feed: Feed) -> Result<Self, Failure> {
        let exchange = stage.name("exchange");
        let names = Names::new(&stage.name("queue"), "0123456789");
        let names = Names {
            gate: stage.name("gate"),
            hold: stage.name("hold"),
            both: stage.name("both"),
            ..names
        };
        let session = stage.session("plant").await?;
        let (kind_of_feed, keys) = match feed {
            Feed::Fanout => ("fanout", vec![""]),
            Feed::Topic => ("topic", vec!["#", "a.*"]),
        };
        let bind = |key: &&str| Binding {
            source: exchange.clone(),
            routing_key: (*key).to_owned(),
            arguments: String::new(),
        };
        let bindings: Vec<Binding> = keys.iter().map(bind).collect();
        let plant = Self { stage, names, exchange, bindings, session };
        plant.wipe().await?;
        plant.stage.rig.declare_exchange(&plant.exchange, kind_of_feed).await?;
        plant.stage.rig.declare_queue(&plant.names.primary, kind).await?;
        for binding in &plant.bindings {
            plant.stage.rig.bind(&plant.names.primary, binding).await?;
        }
        Ok(plant)
    }

    pub(super) async fn apply(&self, change: Topology) -> Result<(), Failure> {
        Ok(self.session.apply(&change).await?)
    }

    pub(super) async fn bind_queue(&self, queue: &str, source: &str) -> Result<(), Failure> {
        let (queue, binding) = (queue.to_owned(), Binding::plain(source));
        self.apply(Topology::BindQueue { queue, binding }).await
    }

    pub(super) async fn unbind_queue(&self, queue: &str, source: &str) -> Result<(), Failure> {
        let (queue, binding) = (queue.to_owned(), Binding::plain(source));
        self.apply(Topology::UnbindQueue { queue, binding }).await
    }

    /// Both to gate: feeds the primary and the second side queue.
    pub(super) async fn feed_both(&self, on: bool) -> Result<(), Failure> {
        let (destination, binding) = (self.names.both.clone(), Binding::plain(&self.names.gate));
        self.apply(if on {
            Topology::BindExchange { destination, binding }
        } else {
            Topology::UnbindExchange { destination, binding }
        })
        .await
    }

    /// Step 1: all of the queue's feed passes the gate.
    pub(super) async fn install(&self) -> Result<(), Failure> {
        let names = &self.names;
        self.session.lock(&names.lock).await?;
        self.declare_exchange(&names.hold, None).await?;
        self.declare_exchange(&names.gate, Some(&names.hold)).await?;
        self.declare_exchange(&names.both, None).await?;
        for queue in names.side_queues() {
            self.apply(Topology::DeclareSideQueue { name: queue.to_owned() }).await?;
        }
        self.bind_queue(&names.s1, &names.hold).await?;
        self.bind_queue(&names.primary, &names.both).await?;
        self.bind_queue(&names.s2, &names.both).await?;
        self.bind_queue(&names.primary, &names.gate).await?;
        for binding in self.bindings.clone() {
            let destination = names.gate.clone();
            self.apply(Topology::BindExchange { destination, binding }).await?;
        }
        for binding in self.bindings.clone() {
            let queue = names.primary.clone();
            self.apply(Topology::UnbindQueue { queue, binding }).await?;
        }
        Ok(())
    }

    async fn declare_exchange(&self, name: &str, alternate: Option<&str>) -> Result<(), Failure> {
        let (name, alternate) = (name.to_owned(), alternate.map(str::to_owned));
        self.apply(Topology::DeclareExchange { name, alternate }).await
    }

    /// Step 11: the feed as it was, and nothing of ours left.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        let names = &self.names;
        for binding in self.bindings.clone() {
            let queue = names.primary.clone();
            self.apply(Topology::BindQueue { queue, binding }).await?;
        }
        for binding in self.bindings.clone() {
            let destination = names.gate.clone();
            self.apply(Topology::UnbindExchange { destination, binding }).await?;
        }
        for exchange in names.exchanges() {
            self.apply(Topology::DeleteExchange { name: exchange.to_owned() }).await?;
        }
        for queue in names.side_queues() {
            eventually("the side queue has no consumer", async || {
                Ok(self.session.counts(queue).await?.is_none_or(|c| c.consumers == 0))
            })
            .await?;
            self.apply(Topology::DeleteQueue { name: queue.to_owned() }).await?;
        }
        let left: BTreeSet<Binding> =
            self.session.bindings(&names.primary).await?.into_iter().collect();
        let original: BTreeSet<Binding> = self.bindings.iter().cloned().collect();
        ensure(left == original, || format!("bindings are {left:?} instead of {original:?}"))
    }

    pub(super) async fn counts(&self, queue: &str) -> Result<Counts, Failure> {
        let counts = self.session.counts(queue).await?;
        counts.ok_or_else(|| Failure(format!("queue {queue} does not exist")))
    }

    pub(super) async fn until_drained(&self, queue: &str) -> Result<Duration, Failure> {
        eventually("the queue is drained", async || Ok(self.counts(queue).await?.ready == 0)).await
    }

    /// Waits for the proof that `queue` holds nothing.
    pub(super) async fn prove_empty(&self, queue: &str) -> Result<Duration, Failure> {
        let begun = Instant::now();
        while self.session.emptiness(queue).await? == Emptiness::Unproved {
            ensure(begun.elapsed() < PATIENCE, || format!("{queue} is not proved empty"))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(begun.elapsed())
    }

    /// Removes everything, whatever was left by an earlier run.
    pub(super) async fn wipe(&self) -> Result<(), Failure> {
        let names = &self.names;
        let queues = [&names.primary, &names.s1, &names.s2, &names.park].map(String::as_str);
        let [gate, both, hold] = names.exchanges();
        self.stage.rig.remove(&queues, &[gate, both, hold, &self.exchange]).await
    }

    /// The end of a case.
    pub(super) async fn clear(self) -> Result<(), Failure> {
        self.session.close().await;
        self.wipe().await
    }
}
