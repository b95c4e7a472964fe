//! Orders to applications, published on a connection of their own.
//!
//! Under an alarm the broker stops reading from a connection that publishes: the publish is held
//! and delivered whenever the alarm ends, even if the client has gone meanwhile, because the bytes
//! are in the broker's socket. So after a timeout the connection is closed *by the broker*, through
//! the management API, which discards what it has not read; only then may the caller look at the
//! queue and try again.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use shadow_protocol::broker::Order;
use shadow_protocol::effect::EffectId;
use tokio::sync::Mutex;

use super::client::{Role, Wire};
use super::management::Management;
use super::session::end;
use super::table::name;
use crate::Error;

/// Limit for the broker's confirmation.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);
/// How long the broker may take to list and close a connection that got stuck: it lists new ones
/// up to five seconds late.
const DISCARD_PATIENCE: Duration = Duration::from_secs(7);
const PERSISTENT: u8 = 2;

/// The publishing connection, opened with the first order.
#[derive(Default)]
pub(super) struct Publisher(Mutex<Option<(Connection, Channel)>>);

impl Publisher {
    pub(super) async fn send(
        &self,
        wire: &Wire,
        management: &Management,
        order: &Order,
        id: &EffectId,
    ) -> Result<(), Error> {
        let queue = order.queue();
        let attempted = format!("publishing an order to {queue:?}");
        let payload = serde_json::to_vec(&order.control)
            .map_err(|error| wire.failed(&attempted, error.to_string()))?;
        let key = name(&queue)?;
        let mut slot = self.0.lock().await;
        let live = slot.take().filter(|(_, channel)| channel.status().connected());
        let (connection, channel) = match live {
            Some(live) => live,
            None => connect(wire).await?,
        };
        let published = publish(&channel, key, id, &payload);
        match tokio::time::timeout(CONFIRM_DEADLINE, published).await {
            Err(_) => {
                discard(wire, management).await?;
                Err(wire.timeout(&attempted, CONFIRM_DEADLINE))
            }
            Ok(outcome) => {
                let confirmation = wire.run(&attempted, async { outcome }).await?;
                *slot = Some((connection, channel));
                match confirmation {
                    Confirmation::Ack(None) => Ok(()),
                    Confirmation::Ack(Some(_)) => {
                        Err(wire.failed(&attempted, "there is no such queue"))
                    }
                    Confirmation::Nack(_) | Confirmation::NotRequested => {
                        Err(wire.failed(&attempted, "the broker did not accept the message"))
                    }
                }
            }
        }
    }

    pub(super) async fn close(&self) {
        if let Some((connection, _)) = self.0.lock().await.take() {
            end(&connection).await;
        }
    }
}

async fn connect(wire: &Wire) -> Result<(Connection, Channel), Error> {
    let connection = wire.connect(Role::Publisher).await?;
    let channel = wire.run("opening a channel", connection.create_channel()).await?;
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    wire.run("asking for confirms", confirms).await?;
    Ok((connection, channel))
}

async fn publish(
    channel: &Channel,
    key: ShortString,
    id: &EffectId,
    payload: &[u8],
) -> lapin::Result<Confirmation> {
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(id.as_str().into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish("".into(), key, options, payload, properties).await?.await
}

/// Has the broker close this session's publishing connection, unread bytes and all.
async fn discard(wire: &Wire, management: &Management) -> Result<(), Error> {
    let stuck = |c: &super::management::ClientConnection| c.is(&wire.session, Role::Publisher);
    let begun = std::time::Instant::now();
    while management.close_connections(stuck).await? == 0 {
        if begun.elapsed() >= DISCARD_PATIENCE {
            return Err(wire.failed(
                "closing a publishing connection that is stuck",
                "the management API does not list it, so an order may yet be delivered",
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
