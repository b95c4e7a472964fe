//! What there is to know of a queue before anything is touched.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use shadow_protocol::broker::{
    Arguments, Binding, Consumer, Counts, Exchange, Queue, QueueType, Survey, Totals,
};

use super::session::RabbitSession;
use crate::Error;

#[derive(Deserialize)]
struct Overview {
    #[serde(default)]
    rabbitmq_version: String,
    #[serde(default)]
    disable_stats: bool,
}

#[derive(Deserialize)]
struct Described {
    #[serde(rename = "type")]
    kind: QueueTypeName,
    durable: bool,
    auto_delete: bool,
    exclusive: Option<bool>,
    #[serde(default)]
    arguments: Arguments,
    /// An empty list instead of an empty object while there is none.
    #[serde(default)]
    effective_policy_definition: Value,
    #[serde(default)]
    consumer_details: Vec<ConsumerDetails>,
    #[serde(default)]
    message_stats: MessageStats,
    #[serde(default)]
    messages_ready: u64,
}

/// Absent or without a figure as long as there was nothing to count.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct MessageStats {
    publish: u64,
    ack: u64,
    redeliver: u64,
    ack_details: Rate,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Rate {
    rate: f64,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct QueueTypeName(String);

#[derive(Deserialize)]
struct ConsumerDetails {
    consumer_tag: String,
    ack_required: bool,
    exclusive: bool,
    #[serde(default)]
    channel_details: ChannelDetails,
}

/// An empty list instead of an object while the channel is not known.
#[derive(Default, Deserialize)]
#[serde(from = "Value")]
struct ChannelDetails {
    connection: String,
    peer: String,
}

#[derive(Deserialize)]
struct ChannelOverview {
    name: String,
    #[serde(default)]
    vhost: String,
    #[serde(default)]
    transactional: bool,
}

impl From<Value> for ChannelDetails {
    fn from(value: Value) -> Self {
        let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { connection: text("connection_name"), peer: text("peer_host") }
    }
}

impl From<MessageStats> for Totals {
    fn from(stats: MessageStats) -> Self {
        Self { routed: stats.publish, acknowledged: stats.ack, redelivered: stats.redeliver }
    }
}

impl From<QueueTypeName> for QueueType {
    fn from(QueueTypeName(name): QueueTypeName) -> Self {
        match name.as_str() {
            "classic" => Self::Classic,
            "quorum" => Self::Quorum,
            _ => Self::Other(name),
        }
    }
}

impl RabbitSession {
    pub(super) async fn make_survey(&self, primary: &str, control: &str) -> Result<Survey, Error> {
        let (overview, bindings, control_queue, alarms) = tokio::try_join!(
            self.overview(),
            self.queue_bindings(primary),
            self.count(control),
            self.alarms(),
        )?;
        let described = self.described(primary).await?;
        let mut consumers = described.as_ref().map(Described::consumers).unwrap_or_default();
        for consumer in &mut consumers {
            consumer.heartbeat_s = self.heartbeat(&consumer.connection).await?;
        }
        let totals = described.as_ref().map(Described::totals).unwrap_or_default();
        let service_rate = described.as_ref().and_then(Described::service_rate);
        let queue = match described {
            Some(described) => Some(self.queue(primary, described).await?),
            None => None,
        };
        let exchanges = self.exchanges(&bindings).await?;
        let transactions = self.transactions(&exchanges).await?;
        Ok(Survey {
            version: overview.rabbitmq_version,
            queue,
            bindings,
            exchanges,
            consumers,
            totals,
            service_rate,
            control_queue: control_queue.is_some(),
            alarms,
            transactions,
            statistics_disabled: overview.disable_stats,
        })
    }

    /// The consumers of `queue`, from statistics that may be seconds old.
    pub(super) async fn queue_consumers(&self, queue: &str) -> Result<Vec<Consumer>, Error> {
        Ok(self.described(queue).await?.as_ref().map(Described::consumers).unwrap_or_default())
    }

    pub(super) async fn queue_totals(&self, queue: &str) -> Result<Totals, Error> {
        Ok(self.described(queue).await?.as_ref().map(Described::totals).unwrap_or_default())
    }

    /// As negotiated by a connection, which may have gone meanwhile, or not be known yet.
    async fn heartbeat(&self, connection: &str) -> Result<Option<u64>, Error> {
        if connection.is_empty() {
            return Ok(None);
        }
        let found: Option<Value> = self.management.get(&["connections", connection], "").await?;
        Ok(found.and_then(|it| it.get("timeout").and_then(Value::as_u64)))
    }

    /// Counts that may decide over a deletion: a quorum queue that can't be asked answers 0/0, so
    /// that answer must come twice, and in time.
    pub(super) async fn believable_counts(&self, queue: &str) -> Result<Option<Counts>, Error> {
        let first = self.count(queue).await?;
        if first == Some(Counts::default()) { self.count(queue).await } else { Ok(first) }
    }

    async fn described(&self, queue: &str) -> Result<Option<Described>, Error> {
        self.management.get(&["queues", self.management.vhost(), queue], "").await
    }

    async fn overview(&self) -> Result<Overview, Error> {
        let overview: Option<Overview> = self.management.get(&["overview"], "").await?;
        overview.ok_or_else(|| {
            self.management.failed(
                "reading the overview",
                "there is no management API at this address; enable the plugin \
                 rabbitmq_management or set managementUrl"
                    .to_owned(),
            )
        })
    }

    async fn queue(&self, name: &str, described: Described) -> Result<Queue, Error> {
        // The statistics lag behind a policy made just now; the applied policy's name does not.
        let mut policy: Arguments =
            serde_json::from_value(described.effective_policy_definition).unwrap_or_default();
        if let Some(applied) = self.applied_policy(name).await? {
            match self.policy_definition(&applied).await {
                Ok(definition) => policy.extend(definition),
                // Reading policies takes a right of its own; the statistics tell them too.
                Err(Error::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Queue {
            kind: described.kind.into(),
            durable: described.durable,
            exclusive: described.exclusive.unwrap_or(false),
            auto_delete: described.auto_delete,
            arguments: described.arguments,
            policy,
        })
    }

    async fn exchanges(&self, bindings: &[Binding]) -> Result<BTreeMap<String, Exchange>, Error> {
        #[derive(Deserialize)]
        struct Typed {
            #[serde(rename = "type")]
            kind: String,
        }
        let mut exchanges = BTreeMap::new();
        for binding in bindings {
            if exchanges.contains_key(&binding.source) {
                continue;
            }
            let path = ["exchanges", self.management.vhost(), &binding.source];
            if let Some(Typed { kind }) = self.management.get(&path, "").await? {
                exchanges.insert(binding.source.clone(), Exchange { kind });
            }
        }
        Ok(exchanges)
    }

    /// Alarms in force anywhere in the cluster.
    async fn alarms(&self) -> Result<Vec<String>, Error> {
        match self.management.get::<Value>(&["health", "checks", "alarms"], "").await {
            Ok(_) => Ok(Vec::new()),
            // 503 while there is one, with the reason in words.
            Err(Error::Failed { answer, .. }) => Ok(vec![answer]),
            Err(error) => Err(error),
        }
    }

    /// Transactional channels that publish to one of `exchanges`, or may for all we are told.
    async fn transactions(
        &self,
        exchanges: &BTreeMap<String, Exchange>,
    ) -> Result<Vec<String>, Error> {
        let vhost = self.management.vhost();
        let channels: Vec<ChannelOverview> = self.management.list(&["channels"]).await?;
        let mut transactions = Vec::new();
        for channel in channels.iter().filter(|c| c.transactional && c.vhost == vhost) {
            let detail: Option<Value> =
                self.management.get(&["channels", &channel.name], "").await?;
            let Some(detail) = detail else { continue };
            let publishes = detail.get("publishes").and_then(Value::as_array);
            let targets: Vec<&str> = publishes
                .into_iter()
                .flatten()
                .filter_map(|publish| publish.pointer("/exchange/name").and_then(Value::as_str))
                .collect();
            if targets.is_empty() || targets.iter().any(|target| exchanges.contains_key(*target)) {
                transactions.push(channel.name.clone());
            }
        }
        Ok(transactions)
    }
}

impl Described {
    fn totals(&self) -> Totals {
        self.message_stats.into()
    }

    /// Only a consumer that always found a message shows how fast it is.
    fn service_rate(&self) -> Option<u64> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
        let rate = self.message_stats.ack_details.rate.round() as u64;
        (self.messages_ready > 0 && rate > 0).then_some(rate)
    }

    fn consumers(&self) -> Vec<Consumer> {
        let consumer = |details: &ConsumerDetails| Consumer {
            tag: details.consumer_tag.clone(),
            ack_required: details.ack_required,
            exclusive: details.exclusive,
            connection: details.channel_details.connection.clone(),
            peer: details.channel_details.peer.clone(),
            heartbeat_s: None,
        };
        self.consumer_details.iter().map(consumer).collect()
    }
}
