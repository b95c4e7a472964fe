//! One publisher: numbers its messages, keeps those without a confirm, and after a lost
//! connection (or a refused message) sends them again, in order and flagged, before anything new.

use std::collections::VecDeque;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::warn;

use super::{Settings, Shared};
use crate::broker::{self, Backoff, Doing, Error, Url, chain};
use crate::clock::unix_ms;
use crate::message::Message;

/// So many messages may wait for their confirms. Beyond it the schedule waits, and is caught up
/// with later: nothing is skipped.
const MAX_OUTSTANDING: usize = 10_000;
const PERSISTENT: u8 = 2;

pub(super) struct Publisher {
    id: String,
    url: Url,
    settings: Settings,
    counts: Shared,
    last_seq: u64,
    /// In order; the first waits longest.
    outstanding: VecDeque<Message>,
}

impl Publisher {
    pub(super) fn new(id: String, url: Url, settings: Settings, counts: Shared) -> Self {
        Self { id, url, settings, counts, last_seq: 0, outstanding: VecDeque::new() }
    }

    /// Publishes until `stop` says so and every message has its answer.
    pub(super) async fn run(mut self, index: u32, mut stop: watch::Receiver<bool>) {
        let period = Duration::from_secs_f64(1.0 / self.settings.rate);
        // The publishers take turns, so that together they keep the rate evenly.
        let first = Instant::now() + period * (index + 1);
        let mut ticks = interval_at(first, period * self.settings.publishers);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut backoff = Backoff::default();
        while let Err(error) = self.session(&mut ticks, &mut stop, &mut backoff).await {
            warn!(publisher = self.id, error = chain(&error), "connecting again");
            self.counts.lock().reconnects += 1;
            backoff.wait().await;
        }
    }

    async fn session(
        &mut self,
        ticks: &mut Interval,
        stop: &mut watch::Receiver<bool>,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        let mut stopping = *stop.borrow();
        if stopping && self.outstanding.is_empty() {
            return Ok(());
        }
        let name = format!("publisher {}", self.id);
        let connection = broker::connect(&self.url, &name).await?;
        let channel = broker::channel(&connection).await?;
        let Settings { exchange, exchange_type, .. } = &self.settings;
        broker::declare_exchange(&channel, exchange, exchange_type).await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .doing(|| "asking for confirms".into())?;
        let mut confirms = self.republish(&channel).await?;
        backoff.reset();
        while !(stopping && self.outstanding.is_empty()) {
            tokio::select! {
                confirm = first(&mut confirms) => {
                    confirms.pop_front();
                    self.settle(confirm)?;
                }
                _ = ticks.tick(), if !stopping && self.outstanding.len() < MAX_OUTSTANDING => {
                    confirms.push_back(self.publish_next(&channel).await?);
                }
                _ = stop.changed(), if !stopping => stopping = true,
            }
        }
        // Every message is confirmed: how the connection ends no longer matters.
        let _ = connection.close(200, "stopped".into()).await;
        Ok(())
    }

    async fn republish(&mut self, channel: &Channel) -> Result<VecDeque<PublisherConfirm>, Error> {
        let mut confirms = VecDeque::new();
        for message in &mut self.outstanding {
            message.republication += 1;
            self.counts.lock().republished += 1;
            confirms.push_back(send(channel, &self.settings, message).await?);
        }
        Ok(confirms)
    }

    async fn publish_next(&mut self, channel: &Channel) -> Result<PublisherConfirm, Error> {
        self.last_seq += 1;
        let message = Message {
            publisher: self.id.clone(),
            seq: self.last_seq,
            published_at: unix_ms(),
            republication: 0,
        };
        // Kept before it is sent: if sending fails, it may have arrived or not.
        self.outstanding.push_back(message.clone());
        {
            let mut counts = self.counts.lock();
            counts.published += 1;
            counts.unconfirmed += 1;
        }
        send(channel, &self.settings, &message).await
    }

    /// Takes the answer to the first outstanding message. A refusal ends the session, so that
    /// this message and all behind it are sent again in their order.
    fn settle(&mut self, confirm: lapin::Result<Confirmation>) -> Result<(), Error> {
        let confirm =
            confirm.doing(|| format!("waiting for a confirm of publisher {}", self.id))?;
        let Some(message) = self.outstanding.front() else { return Ok(()) };
        let seq = message.seq;
        let mut counts = self.counts.lock();
        match confirm {
            Confirmation::Ack(None) => {
                counts.confirmed += 1;
                counts.highest_confirmed = seq;
            }
            Confirmation::Ack(Some(_)) => counts.returned += 1,
            Confirmation::Nack(_) | Confirmation::NotRequested => {
                return Err(Error::Nacked { publisher: self.id.clone(), seq });
            }
        }
        counts.unconfirmed -= 1;
        drop(counts);
        self.outstanding.pop_front();
        Ok(())
    }
}

/// The first confirm. Dropping this future loses nothing: the confirm stays where it is.
async fn first(confirms: &mut VecDeque<PublisherConfirm>) -> lapin::Result<Confirmation> {
    match confirms.front_mut() {
        Some(confirm) => confirm.await,
        None => std::future::pending().await,
    }
}

/// Mandatory: a message that reaches no queue is returned, and counted apart.
async fn send(
    channel: &Channel,
    settings: &Settings,
    message: &Message,
) -> Result<PublisherConfirm, Error> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into());
    let (exchange, key) = (settings.exchange.as_str(), settings.routing_key.as_str());
    let body = serde_json::json!(message).to_string();
    channel
        .basic_publish(exchange.into(), key.into(), options, body.as_bytes(), properties)
        .await
        .doing(|| format!("publishing message {} of publisher {}", message.seq, message.publisher))
}
