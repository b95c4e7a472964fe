//! What the operator does at the broker: queues, orders, counts.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};

use super::eventually;

pub struct Client {
    connection: Connection,
}

impl Client {
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await;
        Self { connection: connection.expect("the test connects") }
    }

    pub async fn declare(&self, queue: &str) {
        let channel = self.connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions::durable();
        channel.queue_declare(queue.into(), options, FieldTable::default()).await.expect(queue);
    }

    pub async fn unbind(&self, queue: &str, exchange: &str) {
        let channel = self.connection.create_channel().await.expect("a channel");
        let arguments = FieldTable::default();
        let unbound = channel.queue_unbind(queue.into(), exchange.into(), "".into(), arguments);
        unbound.await.expect("unbind");
    }

    /// Publishes, in order, and waits for the confirms.
    pub async fn publish(&self, queue: &str, bodies: &[String]) {
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let mut confirms = Vec::new();
        for body in bodies {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let persistent = BasicProperties::default().with_delivery_mode(2);
            let sent = channel.basic_publish(
                "".into(),
                queue.into(),
                options,
                body.as_bytes(),
                persistent,
            );
            confirms.push(sent.await.expect("publish"));
        }
        for confirm in confirms {
            let confirm = confirm.await.expect("a confirm");
            assert!(confirm.is_ack() && confirm.take_message().is_none(), "routed to {queue}");
        }
        channel.close(200, "done".into()).await.expect("close");
    }

    pub async fn start_replay(&self, pod: &str, queue: &str) {
        let order = json!({"type": "START_REPLAY", "payload": {"queue": queue, "role": "source"}});
        self.publish(&format!("ms2m.control.{pod}"), &[order.to_string()]).await;
    }

    pub async fn end_replay(&self, pod: &str) {
        let order = json!({"type": "END_REPLAY"}).to_string();
        self.publish(&format!("ms2m.control.{pod}"), &[order]).await;
    }

    /// Ready messages and consumers.
    pub async fn counts(&self, queue: &str) -> Result<(u32, u32), String> {
        // A channel of its own: a missing queue closes it.
        let channel = self.connection.create_channel().await.map_err(|e| e.to_string())?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        let queue = queue.map_err(|error| error.to_string())?;
        let _ = channel.close(200, "done".into()).await;
        Ok((queue.message_count(), queue.consumer_count()))
    }

    /// Waits until the queue has exactly so many ready messages and consumers.
    pub async fn until(&self, queue: &str, expected: (u32, u32)) {
        eventually(queue, async || match self.counts(queue).await? {
            counts if counts == expected => Ok(()),
            counts => Err(format!("(ready, consumers) is {counts:?}, not {expected:?}")),
        })
        .await;
    }
}

/// Messages `seqs` of publisher `p`.
pub fn messages(seqs: std::ops::RangeInclusive<u64>) -> Vec<String> {
    seqs.map(|seq| json!({"publisher": "p", "seq": seq, "published_at": 0}).to_string()).collect()
}

/// The totals that say whether anything was lost, doubled or out of order.
pub fn harm(ledger: &Value) -> (u64, u64, u64) {
    let total = |name: &str| ledger["totals"][name].as_u64().expect("a count");
    (total("gaps"), total("duplicated"), total("inversions"))
}
