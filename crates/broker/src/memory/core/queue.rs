//! Queues.

use std::collections::VecDeque;

use super::message::{Content, Ready, Run};
use super::statistics::Emissions;
use super::{ConnectionId, ConsumerId, Name};
use shadow_protocol::broker::Totals;

/// A queue's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Classic queue.
    Classic,
    /// Quorum queue.
    Quorum,
}

/// A quorum queue's delivery limit where none is asked for.
const DEFAULT_LIMIT: i64 = 20;

/// A queue's declaration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueueOptions {
    /// Its type.
    pub kind: Kind,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Belongs to the connection that declares it.
    pub exclusive: bool,
    /// `x-single-active-consumer`.
    pub single_active: bool,
    /// `x-delivery-limit`, of quorum queues: a message that has come back more often is dropped;
    /// negative: never, but then returned messages go to the back. Absent: 20.
    pub delivery_limit: Option<i64>,
    /// A message that has waited so long goes to another queue, by the default exchange.
    pub expiry: Option<Expiry>,
    /// All arguments, for who asks; canonical JSON text.
    pub arguments: Name,
}

/// `x-message-ttl` with a dead letter routing key, the default exchange's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Expiry {
    /// How long a message waits, in milliseconds.
    pub after: u64,
    /// The queue it goes to then.
    pub to: Name,
}

impl QueueOptions {
    /// Durable, without arguments.
    pub fn durable(kind: Kind) -> Self {
        Self {
            kind,
            durable: true,
            exclusive: false,
            single_active: false,
            delivery_limit: None,
            expiry: None,
            arguments: Name::from(""),
        }
    }

    /// As a migration's side queues.
    pub fn side() -> Self {
        let delivery_limit = Some(i64::from(i32::MAX));
        Self { single_active: true, delivery_limit, ..Self::durable(Kind::Quorum) }
    }

    /// As a migration's queue in which an order waits before it goes to the queue `to`.
    pub fn waiting(to: &str, after: u64) -> Self {
        Self { expiry: Some(Expiry { after, to: to.into() }), ..Self::durable(Kind::Quorum) }
    }

    /// As a migration's lock.
    pub fn lock() -> Self {
        Self { durable: false, exclusive: true, ..Self::durable(Kind::Classic) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Queue<M> {
    pub(super) options: QueueOptions,
    /// Whose it is, if exclusive.
    pub(super) owner: Option<ConnectionId>,
    pub(super) ready: Ready<M>,
    /// In order of registration or of their turn, the cancelled that hold something included.
    pub(super) consumers: Vec<ConsumerId>,
    /// Of a queue with a single active consumer.
    pub(super) active: Option<ConsumerId>,
    next_position: u64,
    pub(super) totals: Totals,
    /// When the ready messages have waited long enough, in order; only where they do.
    pub(super) expires: VecDeque<u64>,
    /// Beyond the delivery limit.
    pub(super) dropped: u64,
    pub(super) emissions: Emissions,
    /// Asked passively, it answers 0/0.
    pub(super) blind: bool,
}

impl<M: Content> Queue<M> {
    pub(super) fn new(options: QueueOptions, owner: Option<ConnectionId>) -> Self {
        Self {
            options,
            owner,
            ready: Ready::default(),
            consumers: Vec::new(),
            active: None,
            next_position: 0,
            totals: Totals::default(),
            expires: VecDeque::new(),
            dropped: 0,
            emissions: Emissions::default(),
            blind: false,
        }
    }

    /// New messages at the end.
    pub(super) fn enqueue(&mut self, first: M, count: u64, now: u64) {
        self.totals.routed += count;
        if let Some(expiry) = &self.options.expiry {
            let until = now.saturating_add(expiry.after);
            self.expires.extend((0..count).map(|_| until));
        }
        self.append(Run { first, count, returns: 0 });
    }

    /// Messages that were delivered and not acknowledged.
    pub(super) fn put_back(&mut self, position: u64, mut run: Run<M>) {
        match self.options.kind {
            Kind::Classic => run.returns = 1,
            Kind::Quorum => match self.options.delivery_limit.unwrap_or(DEFAULT_LIMIT) {
                ..0 => {
                    run.returns = 1;
                    return self.append(run);
                }
                limit => {
                    run.returns += 1;
                    if i64::from(run.returns) > limit {
                        self.dropped += run.count;
                        return;
                    }
                }
            },
        }
        self.ready.insert(position, run);
    }

    fn append(&mut self, run: Run<M>) {
        let position = self.next_position;
        self.next_position += run.count;
        self.ready.insert(position, run);
    }

    /// Starts counting positions anew, so that an empty queue's past can't be told from its state.
    pub(super) fn rewind(&mut self) {
        self.next_position = 0;
    }

    /// Drops what is ready.
    pub(super) fn purge(&mut self) -> u64 {
        self.expires.clear();
        std::mem::take(&mut self.ready).count()
    }
}
