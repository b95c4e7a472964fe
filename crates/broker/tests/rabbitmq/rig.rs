//! Publishers and consumers straight on lapin.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use shadow_broker::conformance::{Consumer, Failure, Line, Publisher, Received, Rig};
use shadow_broker::rabbitmq::RabbitMq;
use shadow_broker::{Connector, Target};
use shadow_protocol::broker::{Binding, QueueType};

use crate::proxy;

/// A real broker.
#[derive(Clone)]
pub struct RabbitRig {
    pub target: Target,
}

/// Reads a variable; where it is missing, says so, and fails in CI.
pub fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        println!("skipped: {name} is not set");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} must be set in CI");
    }
    value
}

impl RabbitRig {
    pub fn from_env() -> Option<Self> {
        let url = variable("SHADOW_TEST_AMQP_URL")?;
        let management_url = Some(variable("SHADOW_TEST_MANAGEMENT_URL")?);
        Some(Self { target: Target { url, management_url } })
    }

    pub async fn connect(&self) -> Result<(Connection, Channel), Failure> {
        let properties = ConnectionProperties::default().with_connection_name("rig".into());
        let connection = Connection::connect(&self.target.url, properties).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }
}

fn table(text: &str) -> FieldTable {
    let mut table = FieldTable::default();
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    for (key, value) in json.as_object().into_iter().flatten() {
        let value = match value {
            Value::Bool(flag) => AMQPValue::Boolean(*flag),
            Value::String(text) => AMQPValue::LongString(text.as_str().into()),
            other => AMQPValue::LongLongInt(other.as_i64().expect("an integer")),
        };
        table.insert(key.as_str().into(), value);
    }
    table
}

#[async_trait]
impl Rig for RabbitRig {
    fn connector(&self) -> Arc<dyn Connector> {
        Arc::new(RabbitMq::from_env().expect("SHADOW_CA_FILE is readable"))
    }

    fn target(&self) -> Target {
        self.target.clone()
    }

    async fn line(&self) -> Result<Line, Failure> {
        let mut url = url::Url::parse(&self.target.url)?;
        let host = url.host_str().unwrap_or_default();
        let (port, cut) = proxy::start(format!("{host}:{}", url.port().unwrap_or(5672))).await?;
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(port)).map_err(|()| Failure("the URL takes no port".to_owned()))?;
        Ok(Line { target: Target { url: url.to_string(), ..self.target.clone() }, cut })
    }

    async fn declare_exchange(&self, name: &str, kind: &str) -> Result<(), Failure> {
        let (connection, channel) = self.connect().await?;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let kind = ExchangeKind::Custom(kind.to_owned());
        channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await?;
        Ok(connection.close(200, "done".into()).await?)
    }

    async fn declare_queue(&self, name: &str, kind: &QueueType) -> Result<(), Failure> {
        let (connection, channel) = self.connect().await?;
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let kind = if *kind == QueueType::Quorum { "quorum" } else { "classic" };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(name.into(), options, arguments).await?;
        Ok(connection.close(200, "done".into()).await?)
    }

    async fn bind(&self, queue: &str, binding: &Binding) -> Result<(), Failure> {
        let (connection, channel) = self.connect().await?;
        let (source, key) = (binding.source.as_str().into(), binding.routing_key.as_str().into());
        let arguments = table(&binding.arguments);
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.into(), source, key, options, arguments).await?;
        Ok(connection.close(200, "done".into()).await?)
    }

    async fn publisher(
        &self,
        exchange: &str,
        key: &str,
        confirms: bool,
    ) -> Result<Box<dyn Publisher>, Failure> {
        let (connection, channel) = self.connect().await?;
        if confirms {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
        }
        let (exchange, key) = (exchange.to_owned(), key.to_owned());
        Ok(Box::new(RawPublisher { _connection: connection, channel, exchange, key }))
    }

    async fn consumer(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, Failure> {
        let (connection, channel) = self.connect().await?;
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel
            .basic_consume(queue.into(), "app".into(), options, FieldTable::default())
            .await?;
        Ok(Box::new(RawConsumer { connection, channel, consumer }))
    }

    async fn remove(&self, queues: &[&str], exchanges: &[&str]) -> Result<(), Failure> {
        let (connection, channel) = self.connect().await?;
        for queue in queues {
            channel.queue_delete((*queue).into(), QueueDeleteOptions::default()).await?;
        }
        for exchange in exchanges {
            channel.exchange_delete((*exchange).into(), ExchangeDeleteOptions::default()).await?;
        }
        Ok(connection.close(200, "done".into()).await?)
    }
}

struct RawPublisher {
    _connection: Connection,
    channel: Channel,
    exchange: String,
    key: String,
}

#[async_trait]
impl Publisher for RawPublisher {
    async fn publish(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let (exchange, key) = (self.exchange.as_str().into(), self.key.as_str().into());
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm =
            self.channel.basic_publish(exchange, key, options, payload, properties).await?;
        match confirm.await? {
            lapin::Confirmation::Ack(None) | lapin::Confirmation::NotRequested => Ok(()),
            other => Err(Failure(format!("not accepted: {other:?}"))),
        }
    }
}

struct RawConsumer {
    connection: Connection,
    channel: Channel,
    consumer: lapin::Consumer,
}

#[async_trait]
impl Consumer for RawConsumer {
    async fn next(&mut self) -> Result<Option<Received>, Failure> {
        let Some(delivery) = self.consumer.next().await.transpose()? else { return Ok(None) };
        Ok(Some(Received { tag: delivery.delivery_tag, payload: delivery.data }))
    }

    async fn ack(&mut self, tag: u64, multiple: bool) -> Result<(), Failure> {
        Ok(self.channel.basic_ack(tag, BasicAckOptions { multiple }).await?)
    }

    async fn cancel(&mut self) -> Result<(), Failure> {
        let tag = self.consumer.tag();
        Ok(self.channel.basic_cancel(tag, BasicCancelOptions::default()).await?)
    }

    async fn close(&mut self) {
        // A connection that is gone already is as good.
        let _ = self.connection.close(200, "done".into()).await;
    }
}
