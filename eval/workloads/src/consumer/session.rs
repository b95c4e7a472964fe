//! One connection of the consumer, from connect to loss.
//!
//! Two channels, one for messages and one for orders. An order is obeyed before the next message
//! is taken: cancel, finish and acknowledge what has arrived, consume the named queue, and only
//! then acknowledge the order, so that an order is obeyed again if the connection dies in between.

use std::fs;
use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Settings, Shared};
use crate::broker::{self, Doing, Error, Url};
use crate::clock::Moment;
use crate::message::{Message, Order};

/// What the application remembers from one connection to the next.
#[derive(Default)]
pub(super) struct Habits {
    declared: bool,
    told: Option<String>,
}

struct Session<'a> {
    settings: &'a Settings,
    shared: &'a Shared,
    habits: &'a mut Habits,
    channel: Channel,
    deliveries: Consumer,
    queue: String,
}

/// Connects and consumes until the connection is lost (an error) or `stop` says so.
pub(super) async fn run(
    url: &Url,
    settings: &Settings,
    shared: &Shared,
    habits: &mut Habits,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Error> {
    // At every connect: a restored process has another name than the one it started with.
    let hostname = fs::read_to_string(&settings.hostname_file).map_err(Error::Hostname)?;
    let hostname = hostname.trim();
    let control_queue = format!("ms2m.control.{hostname}");
    let connection = broker::connect(url, hostname).await?;
    let channel = broker::channel(&connection).await?;
    channel
        .basic_qos(settings.prefetch, BasicQosOptions::default())
        .await
        .doing(|| "setting the prefetch count".into())?;
    if !habits.declared || settings.rebind {
        declare_own(&channel, settings).await?;
    }
    if !habits.declared {
        declare_queue(&channel, &control_queue, FieldTable::default()).await?;
        habits.declared = true;
    }
    if !settings.remember {
        habits.told = None;
    }
    let control = broker::channel(&connection).await?;
    let mut orders = consume(&control, &control_queue).await?;
    let queue = habits.told.clone().unwrap_or_else(|| settings.queue.clone());
    let deliveries = consume_told(&channel, &queue, habits).await?;
    info!(hostname, queue, "connected");
    {
        let mut state = shared.lock();
        state.connection.hostname = hostname.into();
        state.connection.control_queue = control_queue;
        state.connection.connections += 1;
        state.connection.queue = Some(queue.clone());
    }
    let mut session = Session { settings, shared, habits, channel, deliveries, queue };
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            order = orders.next() => session.obey(received(order, "the control queue")?).await?,
            message = session.deliveries.next() => {
                let message = received(message, &session.queue)?;
                session.apply(message).await?;
            }
        }
    }
    // Closing sends the acknowledgements that still wait to be written.
    connection.close(200, "stopped".into()).await.doing(|| "closing the connection".into())
}

fn received(delivery: Option<lapin::Result<Delivery>>, queue: &str) -> Result<Delivery, Error> {
    delivery
        .ok_or_else(|| Error::Ended(format!("consuming {queue}")))?
        .doing(|| format!("consuming {queue}"))
}

/// The application's own topology.
async fn declare_own(channel: &Channel, settings: &Settings) -> Result<(), Error> {
    let Settings { exchange, exchange_type, queue, routing_key, .. } = settings;
    broker::declare_exchange(channel, exchange, exchange_type).await?;
    let mut arguments = FieldTable::default();
    if settings.queue_type != "classic" {
        let kind = AMQPValue::LongString(settings.queue_type.as_str().into());
        arguments.insert("x-queue-type".into(), kind);
    }
    declare_queue(channel, queue, arguments).await?;
    if exchange.is_empty() {
        return Ok(());
    }
    let (queue, exchange, key) =
        (queue.as_str().into(), exchange.as_str().into(), routing_key.as_str().into());
    channel
        .queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default())
        .await
        .doing(|| format!("binding queue {}", settings.queue))
}

async fn declare_queue(channel: &Channel, name: &str, with: FieldTable) -> Result<(), Error> {
    let declared = channel.queue_declare(name.into(), QueueDeclareOptions::durable(), with).await;
    declared.doing(|| format!("declaring queue {name}")).map(drop)
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer, Error> {
    let options = BasicConsumeOptions::default();
    channel
        .basic_consume(queue.into(), "".into(), options, FieldTable::default())
        .await
        .doing(|| format!("consuming queue {queue}"))
}

/// Consumes; a queue that does not exist is forgotten, so that the next connection goes to the
/// application's own.
async fn consume_told(
    channel: &Channel,
    queue: &str,
    habits: &mut Habits,
) -> Result<Consumer, Error> {
    let consumer = consume(channel, queue).await;
    if consumer.as_ref().is_err_and(Error::is_not_found) {
        habits.told = None;
    }
    consumer
}

impl Session<'_> {
    /// Obeys one control message, then acknowledges it. One that can't be read, or that names a
    /// queue that does not exist, is logged and done with.
    async fn obey(&mut self, delivery: Delivery) -> Result<(), Error> {
        let moved = match Order::parse(&delivery.data) {
            Ok(order) => self.switch(order).await,
            Err(error) => {
                warn!(%error, "ignoring a malformed control message");
                Ok(())
            }
        };
        // The control channel outlives the error that closed the other one.
        if moved.as_ref().map_or_else(Error::is_not_found, |()| true) {
            acknowledge(&delivery).await?;
        }
        moved
    }

    async fn switch(&mut self, order: Order) -> Result<(), Error> {
        let (queue, told) = match order {
            Order::Consume(queue) => (queue.clone(), Some(queue)),
            Order::Own => (self.settings.queue.clone(), None),
        };
        self.habits.told = told;
        if queue == self.queue {
            return Ok(());
        }
        self.channel
            .basic_cancel(self.deliveries.tag(), BasicCancelOptions::default())
            .await
            .doing(|| format!("cancelling the consumer of {}", self.queue))?;
        // After cancel-ok the stream holds what had arrived, and then ends.
        while let Some(delivery) = self.deliveries.next().await {
            let delivery = delivery.doing(|| format!("finishing queue {}", self.queue))?;
            self.apply(delivery).await?;
        }
        self.shared.lock().connection.queue = None;
        self.deliveries = consume_told(&self.channel, &queue, self.habits).await?;
        info!(from = self.queue, to = queue, "obeyed");
        self.shared.lock().connection.queue = Some(queue.clone());
        self.queue = queue;
        Ok(())
    }

    async fn apply(&mut self, delivery: Delivery) -> Result<(), Error> {
        if self.settings.service_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.settings.service_ms)).await;
        }
        // Deliveries that outlived their connection come again: applying them now would be twice.
        if !self.channel.status().connected() {
            return Err(Error::Ended(format!("consuming {}", self.queue)));
        }
        match serde_json::from_slice::<Message>(&delivery.data) {
            Ok(message) => {
                let now = Moment::now();
                self.shared.lock().ledger.apply(&message, delivery.redelivered, now);
            }
            Err(error) => {
                warn!(%error, "ignoring a malformed message");
                self.shared.lock().malformed += 1;
            }
        }
        acknowledge(&delivery).await
    }
}

async fn acknowledge(delivery: &Delivery) -> Result<(), Error> {
    delivery.ack(BasicAckOptions::default()).await.doing(|| "acknowledging".into()).map(drop)
}
