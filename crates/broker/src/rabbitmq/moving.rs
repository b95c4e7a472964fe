//! Moves what is left in one queue to the end of another.
//!
//! A batch is consumed, published, confirmed, and only then acknowledged, all on one channel of a
//! connection of its own: whatever goes wrong, the unacknowledged rest returns to its place, and the
//! worst is that the last batch is there twice.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Consumer};

use super::client::Role;
use super::session::{RabbitSession, end};
use super::table::name;
use crate::Error;

/// Messages under way at a time.
const BATCH: u16 = 100;
/// Of what the broker has sent, the next comes within this.
const NEXT: Duration = Duration::from_millis(5);
/// Somebody else is served first, and may be for long.
const UNSERVED: Duration = Duration::from_millis(500);
/// Limit for one call; the next goes on where it ended.
const PATIENCE: Duration = Duration::from_mins(1);

impl RabbitSession {
    pub(super) async fn move_messages(&self, from: &str, to: &str) -> Result<(), Error> {
        let attempted = format!("moving what is left in {from:?} to {to:?}");
        if !self.topology.status().connected() {
            return Err(self.wire.failed(&attempted, "this session has lost its connection"));
        }
        if self.count(from).await?.is_none_or(|counts| counts.ready == 0) {
            return Ok(());
        }
        let connection = self.wire.connect(Role::Mover).await?;
        let done = async {
            let opening = connection.create_channel();
            let channel = self.wire.run("opening a channel", opening).await?;
            self.move_over(&channel, from, to, &attempted).await
        };
        let done = done.await;
        end(&connection).await;
        done
    }

    async fn move_over(
        &self,
        channel: &Channel,
        from: &str,
        to: &str,
        attempted: &str,
    ) -> Result<(), Error> {
        let wire = &self.wire;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        wire.run(attempted, confirms).await?;
        wire.run(attempted, channel.basic_qos(BATCH, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consuming =
            channel.basic_consume(name(from)?, "".into(), options, FieldTable::default());
        let mut consumer = wire.run(attempted, consuming).await?;
        let begun = Instant::now();
        loop {
            let batch = collect(&mut consumer).await.map_err(|why| wire.failed(attempted, why))?;
            if batch.is_empty() {
                // Whoever asks for this deletes the queue next.
                return match self.count(from).await? {
                    Some(counts) if counts.ready > 0 => {
                        Err(wire.failed(attempted, "another consumer of it is served first"))
                    }
                    _ => Ok(()),
                };
            }
            self.hand_over(channel, &batch, to, attempted).await?;
            if self.count(from).await?.is_none_or(|counts| counts.ready == 0) {
                break;
            }
            if begun.elapsed() >= PATIENCE {
                return Err(wire.timeout(attempted, PATIENCE));
            }
        }
        // A queue that is fed is never empty for long: what has been sent here by now is the last.
        let cancelling = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        wire.run(attempted, cancelling).await?;
        let rest = tokio::time::timeout(UNSERVED, consumer.collect::<Vec<_>>()).await;
        let rest = rest.map_err(|_| wire.timeout(attempted, UNSERVED))?;
        let rest: Result<Vec<Delivery>, _> = rest.into_iter().collect();
        let rest = rest.map_err(|why| wire.failed(attempted, why.to_string()))?;
        self.hand_over(channel, &rest, to, attempted).await
    }

    async fn hand_over(
        &self,
        channel: &Channel,
        batch: &[Delivery],
        to: &str,
        attempted: &str,
    ) -> Result<(), Error> {
        let wire = &self.wire;
        let mut promised = Vec::with_capacity(batch.len());
        for message in batch {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let properties = message.properties.clone();
            let publishing =
                channel.basic_publish("".into(), name(to)?, options, &message.data, properties);
            promised.push(wire.run(attempted, publishing).await?);
        }
        for promise in promised {
            match wire.run(attempted, promise).await? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(_)) => {
                    return Err(wire.failed(attempted, "the queue that is to get them is gone"));
                }
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    return Err(wire.failed(attempted, "the broker did not accept a message"));
                }
            }
        }
        if let Some(last) = batch.last() {
            let all = BasicAckOptions { multiple: true };
            wire.run(attempted, channel.basic_ack(last.delivery_tag, all)).await?;
        }
        Ok(())
    }
}

/// What has come, at most a batch; nothing when nobody sends anything.
async fn collect(consumer: &mut Consumer) -> Result<Vec<Delivery>, String> {
    let mut batch = Vec::new();
    while batch.len() < usize::from(BATCH) {
        let patience = if batch.is_empty() { UNSERVED } else { NEXT };
        match tokio::time::timeout(patience, consumer.next()).await {
            Ok(Some(Ok(message))) => batch.push(message),
            Ok(Some(Err(error))) => return Err(error.to_string()),
            Ok(None) => return Err("the broker ended the consumer".to_owned()),
            Err(_) => break,
        }
    }
    Ok(batch)
}
