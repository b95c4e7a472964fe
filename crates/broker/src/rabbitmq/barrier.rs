//! The barrier: closes a side queue to its application and proves that nothing is unacknowledged.
//!
//! A quorum queue with a single active consumer that sees a newcomer with a higher priority stops
//! feeding the active one, waits for its acknowledgements, then activates the newcomer. So a
//! consumer of ours with priority 100 closes the queue, and a *sentinel* that reaches it proves
//! that the application holds nothing.
//!
//! ```text
//!           register            sentinel arrives: ack             anything arrives: keep
//!   Down ─────────────▶ Raised ────────────────────▶ Proved ─────────────────────────────▶ Late
//!     ▲                   │ ▲ something else: close the channel, register again
//!     └── close channel ──┴─┘     (from any state; what was held returns to its place)
//! ```
//!
//! **An application should never receive a sentinel**, whenever this process dies:
//!
//! * A sentinel is published on the channel that consumes, so the broker's queue sees it before it
//!   sees that channel end. Its expiration is 0: if it can't be delivered at once it is gone a
//!   millisecond later, so another follows until one arrives; it is acknowledged on arrival, and
//!   from then on the consumer alone keeps the queue closed.
//! * While the application still holds messages it stays quiescing even if our consumer vanishes,
//!   and gets nothing before its last acknowledgement.
//! * The channel is never closed with a sentinel younger than its expiration.
//!
//! **One hole remains, and no expiration closes it.** The broker lets a message with expiration 0
//! expire at its own clock's *next* millisecond (`rabbit_fifo:update_expiry_header`). A process that
//! is killed in the same millisecond in which the broker enqueued a sentinel hands it to the
//! application. The conformance suite kills there on purpose and measures how often. Where that is
//! not acceptable: order the application to a queue that is never fed, and prove the side queue it
//! left empty with [`crate::Session::emptiness`]; that needs no sentinel.
//!
//! Lowering closes the *channel*: the broker then returns what we hold to the head of the queue and
//! activates the application in one step. A cancel first would let it have later messages first.

use std::collections::HashMap;
use std::sync::Mutex as StdMutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::Barrier;
use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{Role, Wire};
use super::management::Management;
use super::session::{Shared, end};
use super::table::name;
use crate::Error;

/// Header by which a sentinel is known.
pub const SENTINEL_HEADER: &str = "x-shadow-sentinel";
/// A message type that a human finds in a log.
const SENTINEL_TYPE: &str = "shadow.sentinel";
const CONSUMER_TAG: &str = "shadow-barrier";
/// Above any priority an application uses.
const PRIORITY: i32 = 100;
/// Milliseconds a sentinel may wait for delivery; the broker rounds it up to the next one.
const EXPIRATION: &str = "0";
/// From a sentinel's confirm to the next one: by then it has arrived or expired.
const INTERVAL: Duration = Duration::from_millis(3);
/// From a sentinel's confirm to the channel's end.
const SETTLE: Duration = Duration::from_millis(10);
/// Limit for a barrier's task to end.
const LOWER_DEADLINE: Duration = Duration::from_secs(10);

/// A session's barriers and their connection.
pub(super) struct Barriers {
    wire: Wire,
    management: Management,
    connection: Mutex<Option<Shared>>,
    raised: StdMutex<HashMap<String, Raised>>,
}

struct Raised {
    state: watch::Receiver<Barrier>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    /// Ends the task also when the session is dropped.
    _guard: DropGuard,
}

impl Barriers {
    pub(super) fn new(wire: Wire, management: Management) -> Self {
        Self { wire, management, connection: Mutex::default(), raised: StdMutex::default() }
    }

    /// Opens the connection ahead of time: at the barrier every millisecond counts.
    pub(super) async fn prepare(&self) -> Result<Shared, Error> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| c.status().connected()) {
            return Ok(Shared::clone(connection));
        }
        let connection = Arc::new(self.wire.connect(Role::Barrier).await?);
        *slot = Some(Shared::clone(&connection));
        Ok(connection)
    }

    pub(super) fn state(&self, queue: &str) -> Barrier {
        self.raised().get(queue).map_or(Barrier::Down, |raised| *raised.state.borrow())
    }

    /// Registers the consumer on `queue`, which must be empty.
    pub(super) async fn raise(&self, queue: &str) -> Result<(), Error> {
        // What is left of a barrier whose connection broke.
        self.lower(queue).await?;
        let connection = self.prepare().await?;
        let post = Post { wire: self.wire.clone(), connection, queue: name(queue)? };
        let stand = post.take_position().await?;
        let (state, receiver) = watch::channel(Barrier::Raised);
        let stop = CancellationToken::new();
        let task = tokio::spawn(post.keep(stand, state, stop.clone()));
        let guard = stop.clone().drop_guard();
        let raised = Raised { state: receiver, stop, task, _guard: guard };
        self.raised().insert(queue.to_owned(), raised);
        Ok(())
    }

    /// Waits until the barrier is no longer merely raised, at most for `patience`.
    pub(super) async fn wait(&self, queue: &str, patience: Duration) -> Barrier {
        let receiver = self.raised().get(queue).map(|raised| raised.state.clone());
        let Some(mut receiver) = receiver else { return Barrier::Down };
        let settled = receiver.wait_for(|state| *state != Barrier::Raised);
        // Out of time: the state says so itself.
        let _ = tokio::time::timeout(patience, settled).await;
        self.state(queue)
    }

    pub(super) async fn lower(&self, queue: &str) -> Result<(), Error> {
        let raised = self.raised().remove(queue);
        let Some(Raised { stop, mut task, .. }) = raised else { return Ok(()) };
        stop.cancel();
        let attempted = format!("lowering the barrier on {queue:?}");
        let ended = tokio::time::timeout(LOWER_DEADLINE, &mut task).await;
        if matches!(ended, Ok(Ok(Ok(())))) {
            return Ok(());
        }
        // It ended in disorder or not at all: the broker ends the connection, which returns what it
        // holds and discards what it has not read, a sentinel perhaps.
        task.abort();
        self.connection.lock().await.take();
        let session = &self.wire.session;
        let closed = self.management.close_connections(|c| c.is(session, Role::Barrier)).await?;
        tracing::info!(closed, "{attempted}: connection closed");
        Ok(())
    }

    pub(super) async fn close(&self) {
        let queues: Vec<String> = self.raised().keys().cloned().collect();
        for queue in queues {
            if let Err(error) = self.lower(&queue).await {
                tracing::warn!(%error, queue, "a barrier was not lowered in order");
            }
        }
        if let Some(connection) = self.connection.lock().await.take() {
            end(&connection).await;
        }
    }

    fn raised(&self) -> std::sync::MutexGuard<'_, HashMap<String, Raised>> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one queue closed.
struct Post {
    wire: Wire,
    connection: Shared,
    queue: ShortString,
}

/// A registered consumer.
struct Stand {
    channel: Channel,
    consumer: Consumer,
}

/// Why a stand was left.
enum Left {
    /// As told.
    Relieved,
    /// Something that is not ours came before the proof.
    Disturbed,
}

impl Post {
    async fn take_position(&self) -> Result<Stand, Error> {
        let attempted = format!("raising the barrier on {:?}", self.queue.as_str());
        let wire = &self.wire;
        let channel = wire.run(&attempted, self.connection.create_channel()).await?;
        wire.run(&attempted, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        wire.run(&attempted, channel.basic_qos(1, BasicQosOptions::default())).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongInt(PRIORITY));
        let options = BasicConsumeOptions::default();
        let consuming =
            channel.basic_consume(self.queue.clone(), CONSUMER_TAG.into(), options, arguments);
        let consumer = wire.run(&attempted, consuming).await?;
        Ok(Stand { channel, consumer })
    }

    async fn keep(
        self,
        mut stand: Stand,
        state: watch::Sender<Barrier>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        loop {
            let left = self.guard(stand, &state, &stop).await;
            match left {
                Ok(Left::Disturbed) if !stop.is_cancelled() => {
                    tokio::time::sleep(INTERVAL).await;
                    stand = self.take_position().await.inspect_err(|_| down(&state))?;
                }
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, queue = self.queue.as_str(), "barrier lost");
                    down(&state);
                    return Err(error);
                }
            }
        }
    }

    /// Publishes sentinels until one arrives, then watches for late messages.
    async fn guard(
        &self,
        Stand { channel, mut consumer }: Stand,
        state: &watch::Sender<Barrier>,
        stop: &CancellationToken,
    ) -> Result<Left, Error> {
        let attempted = format!("holding the barrier on {:?}", self.queue.as_str());
        // Held unacknowledged until the channel ends, which returns it to its place.
        let mut held: Option<Delivery> = None;
        let left = loop {
            let raised = *state.borrow() == Barrier::Raised;
            if raised {
                // Inside, so that no stop comes between a publish and its confirm.
                self.publish_sentinel(&channel, &attempted).await?;
            }
            let next = tokio::select! {
                biased;
                next = consumer.next() => next,
                () = stop.cancelled() => break Left::Relieved,
                () = tokio::time::sleep(INTERVAL), if raised => continue,
            };
            let delivery = match next {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return self.wire.run(&attempted, async { Err(error) }).await,
                None => {
                    return Err(self.wire.failed(&attempted, "the broker cancelled the consumer"));
                }
            };
            if is_sentinel(&delivery) {
                let ack = delivery.acker.ack(BasicAckOptions::default());
                self.wire.run(&attempted, ack).await?;
                state.send_if_modified(|s| change(s, Barrier::Raised, Barrier::Proved));
            } else if raised {
                break Left::Disturbed;
            } else {
                state.send_if_modified(|s| change(s, Barrier::Proved, Barrier::Late));
                held = Some(delivery);
            }
        };
        tokio::time::sleep(SETTLE).await;
        self.wire.run(&attempted, channel.close(200, "barrier lowered".into())).await?;
        drop(held);
        Ok(left)
    }

    async fn publish_sentinel(&self, channel: &Channel, attempted: &str) -> Result<(), Error> {
        let mut headers = FieldTable::default();
        headers.insert(SENTINEL_HEADER.into(), AMQPValue::Boolean(true));
        let properties = BasicProperties::default()
            .with_type(SENTINEL_TYPE.into())
            .with_expiration(EXPIRATION.into())
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let queue = self.queue.clone();
        let published = async {
            channel.basic_publish("".into(), queue, options, &[], properties).await?.await
        };
        match self.wire.run(attempted, published).await? {
            Confirmation::Ack(None) => Ok(()),
            _ => Err(self.wire.failed(attempted, "the queue is gone or takes no messages")),
        }
    }
}

fn is_sentinel(delivery: &Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    headers.is_some_and(|headers| headers.contains_key(SENTINEL_HEADER))
}

fn change(state: &mut Barrier, from: Barrier, to: Barrier) -> bool {
    let due = *state == from;
    if due {
        *state = to;
    }
    due
}

fn down(state: &watch::Sender<Barrier>) {
    state.send_replace(Barrier::Down);
}
