//! Changes of the topology, each idempotent: all but a move, which is not one instant.

use shadow_protocol::broker::{Counts, Topology};
use shadow_protocol::names::control_queue;

use super::core::{
    Broker, ConnectionId, Content, Destination, ExchangeOptions, Kind, QueueOptions, Refusal,
};

/// Why the broker was not asked, or what it answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The broker's word.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A queue is not deleted under its consumers.
    #[error("queue {queue:?} still has {consumers} consumer(s)")]
    InUse {
        /// The queue.
        queue: String,
        /// How many.
        consumers: u32,
    },
    /// No second control queue can be made like this one.
    #[error("the control queue {0:?} is exclusive, so no twin of it can be declared")]
    Exclusive(String),
    /// No answer comes in time.
    #[error("queue {0:?} does not answer")]
    Unanswered(String),
}

/// Makes a change on the connection `client`.
pub fn change<M: Content>(
    core: &mut Broker<M>,
    client: ConnectionId,
    change: &Topology,
) -> Result<(), Obstacle> {
    let queue_to = |name: &String| Destination::Queue(name.as_str().into());
    let exchange_to = |name: &String| Destination::Exchange(name.as_str().into());
    match change {
        Topology::DeclareExchange { name, alternate } => {
            let options = ExchangeOptions::internal(alternate.as_deref().map(Into::into));
            core.declare_exchange(client, name, options)?;
        }
        Topology::DeclareSideQueue { name } => {
            core.declare_queue(client, name, QueueOptions::side())?;
        }
        Topology::DeclareWaitingQueue { name, pod, after_ms } => {
            let options = QueueOptions::waiting(&control_queue(pod), *after_ms);
            core.declare_queue(client, name, options)?;
        }
        Topology::DeclareControlQueue { name, like } => declare_twin(core, client, name, like)?,
        Topology::BindQueue { queue, binding } => core.bind(client, &queue_to(queue), binding)?,
        Topology::UnbindQueue { queue, binding } => {
            core.unbind(client, &queue_to(queue), binding)?;
        }
        Topology::BindExchange { destination, binding } => {
            core.bind(client, &exchange_to(destination), binding)?;
        }
        Topology::UnbindExchange { destination, binding } => {
            core.unbind(client, &exchange_to(destination), binding)?;
        }
        Topology::DeleteExchange { name } => core.delete_exchange(client, name)?,
        Topology::DeleteQueue { name } => delete_unused(core, client, name)?,
        Topology::Purge { queue } => match core.purge(client, queue) {
            Err(missing) if missing == Refusal::no_queue(queue) => {}
            purged => drop(purged?),
        },
        Topology::Move { .. } => {}
    }
    Ok(())
}

fn declare_twin<M: Content>(
    core: &mut Broker<M>,
    client: ConnectionId,
    name: &str,
    like: &str,
) -> Result<(), Obstacle> {
    let model = core.queue(like).cloned();
    let options = model.unwrap_or_else(|| QueueOptions::durable(Kind::Classic));
    if options.exclusive {
        return Err(Obstacle::Exclusive(like.to_owned()));
    }
    core.declare_queue(client, name, options)?;
    core.purge(client, name)?;
    Ok(())
}

fn delete_unused<M: Content>(
    core: &mut Broker<M>,
    client: ConnectionId,
    name: &str,
) -> Result<(), Obstacle> {
    let consumers = count(core, client, name)?.map_or(0, |counts| counts.consumers);
    if consumers > 0 {
        return Err(Obstacle::InUse { queue: name.to_owned(), consumers });
    }
    core.delete_queue(client, name, false)?;
    Ok(())
}

/// Ready messages and consumers, if there is such a queue. One that can't be asked gives no answer
/// in time, and what it would say is not believed.
pub fn count<M: Content>(
    core: &mut Broker<M>,
    client: ConnectionId,
    queue: &str,
) -> Result<Option<Counts>, Obstacle> {
    if core.blind(queue) {
        return Err(Obstacle::Unanswered(queue.to_owned()));
    }
    match core.declare_passive(client, queue) {
        Ok(counts) => Ok(Some(counts)),
        Err(Refusal::NotFound { .. }) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Takes the queue's lock, having closed what is left of earlier sessions with the same `label`;
/// `ours` are the new session's connections, its own `client` among them. If somebody else has it,
/// the error is [`Refusal::Locked`].
pub fn lock<M: Content>(
    core: &mut Broker<M>,
    client: ConnectionId,
    ours: &[ConnectionId],
    label: &str,
    lock: &str,
) -> Result<(), Refusal> {
    let stale = core.connections().filter(|(id, _, name)| &***name == label && !ours.contains(id));
    let ending: Vec<ConnectionId> = stale.map(|(id, ..)| id).collect();
    for connection in ending {
        core.close_by_broker(connection);
    }
    core.declare_queue(client, lock, QueueOptions::lock()).map(|_| ())
}
