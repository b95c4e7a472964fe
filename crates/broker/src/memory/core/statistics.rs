//! The management API's figures, which lie in two stages: a queue emits them now and then, and what
//! was emitted is shown later still.

use std::ops::AddAssign as _;

use shadow_protocol::broker::{Counts, Totals};

use super::message::Content;
use super::queue::Queue;
use super::{Broker, Kind, Name, Refusal};

/// How time moves the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Milliseconds between two emissions of a queue; 0: never.
    pub emit_every: u64,
    /// Milliseconds between two collections; 0: never.
    pub collect_every: u64,
}

impl Default for Settings {
    /// As `RabbitMQ` has it.
    fn default() -> Self {
        Self { emit_every: 5_000, collect_every: 5_000 }
    }
}

/// What is known of a queue, as of some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Figures {
    /// The work done by the queue's process: grows with each emission, starts anew with the broker.
    pub reductions: u64,
    /// Ready messages.
    pub ready: u64,
    /// Messages delivered and not acknowledged.
    pub unacknowledged: u64,
    /// What it has seen.
    pub totals: Totals,
}

/// A queue's figures on their way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Emissions {
    reductions: u64,
    /// Something has happened since the last emission: an idle classic queue does not emit.
    pub(super) stirred: bool,
    emitted: Option<Figures>,
    collected: Option<Figures>,
}

impl<M: Content> Broker<M> {
    /// Time is `now` milliseconds by now: figures are emitted and collected as they are due. The
    /// state does not change within the leap, so of a long one only the end counts.
    pub fn advance(&mut self, now: u64) {
        let Settings { emit_every, collect_every } = self.settings;
        let enough = (emit_every + collect_every).saturating_mul(3);
        let mut at = self.now.max(now.saturating_sub(enough));
        self.now = self.now.max(now);
        self.expire_all();
        let next =
            |at: u64, every: u64| (at.checked_div(every)?).checked_add(1)?.checked_mul(every);
        loop {
            let (emission, collection) = (next(at, emit_every), next(at, collect_every));
            let Some(tick) = emission.into_iter().chain(collection).min().filter(|it| *it <= now)
            else {
                return;
            };
            // What is emitted at this very moment is collected the next time.
            if collection == Some(tick) {
                self.collect();
            }
            if emission == Some(tick) {
                self.emit_all();
            }
            at = tick;
        }
    }

    fn expire_all(&mut self) {
        let due = |queue: &Queue<M>| queue.expires.front().is_some_and(|at| *at <= self.now);
        let waited = self.queues.iter().filter(|(_, queue)| due(queue));
        let names: Vec<Name> = waited.map(|(name, _)| name.clone()).collect();
        for name in names {
            while self
                .queues
                .get(&name)
                .is_some_and(|queue| queue.expires.front().is_some_and(|at| *at <= self.now))
            {
                self.expire(&name);
            }
        }
    }

    /// The first message of a queue has waited long enough, whatever the time is: it goes where they go
    /// then, or is lost if there is no such queue.
    pub fn expire(&mut self, name: &str) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let Some(to) = queue.options.expiry.as_ref().map(|expiry| expiry.to.clone()) else {
            return;
        };
        queue.expires.pop_front();
        let Some((_, run)) = queue.ready.pop(1) else { return };
        let now = self.now;
        if let Some(next) = self.queues.get_mut(&to) {
            next.enqueue(run.first, 1, now);
            self.feed(&to);
        }
    }

    fn emit_all(&mut self) {
        let names: Vec<Name> = self.queues.keys().cloned().collect();
        for name in names {
            self.emit(&name);
        }
    }

    /// The queue emits its figures, unless it is classic and idle.
    pub(super) fn emit(&mut self, queue: &str) {
        let Some(unacknowledged) = self.unacknowledged(queue) else { return };
        let Some(queue) = self.queues.get_mut(queue) else { return };
        let emissions = &mut queue.emissions;
        if queue.options.kind == Kind::Classic && !std::mem::take(&mut emissions.stirred) {
            return;
        }
        emissions.reductions.add_assign(1);
        emissions.emitted = Some(Figures {
            reductions: emissions.reductions,
            ready: queue.ready.count(),
            unacknowledged,
            totals: queue.totals,
        });
    }

    /// The management API gets what was emitted last, of all queues.
    pub(super) fn collect(&mut self) {
        for queue in self.queues.values_mut() {
            queue.emissions.collected = queue.emissions.emitted;
        }
    }
}

impl<M> Broker<M> {
    /// What the management API's statistics say of a queue; nothing before the first emission was
    /// collected.
    pub fn statistics(&self, queue: &str) -> Result<Option<Figures>, Refusal> {
        let found = self.queues.get(queue).ok_or_else(|| Refusal::no_queue(queue))?;
        Ok(found.emissions.collected)
    }

    /// A queue's figures at this instant. Of a classic queue the management API tells ready and
    /// unacknowledged live; the rest only oracles see.
    pub fn figures(&self, queue: &str) -> Option<Figures> {
        let unacknowledged = self.unacknowledged(queue)?;
        let found = self.queues.get(queue)?;
        let Emissions { reductions, .. } = found.emissions;
        let (ready, totals) = (found.ready.count(), found.totals);
        Some(Figures { reductions, ready, unacknowledged, totals })
    }

    /// What a passive declare tells: ready messages and consumers. A cancelled consumer of a quorum
    /// queue counts until its last acknowledgement, one of a classic queue does not.
    pub fn counts(&self, queue: &str) -> Option<Counts> {
        let found = self.queues.get(queue)?;
        if found.blind {
            return Some(Counts::default());
        }
        let counted = found.consumers.iter().filter(|id| {
            let live = self.consumers.get(id).is_some_and(|consumer| !consumer.cancelled);
            live || found.options.kind == Kind::Quorum
        });
        let consumers = u32::try_from(counted.count()).unwrap_or(u32::MAX);
        Some(Counts { ready: found.ready.count(), consumers })
    }

    /// Messages of a queue that are delivered and not acknowledged, at this instant.
    fn unacknowledged(&self, queue: &str) -> Option<u64> {
        let found = self.queues.get(queue)?;
        let holders = found.consumers.iter().filter_map(|id| self.consumers.get(id));
        Some(holders.map(|it| it.holding).sum())
    }

    /// Messages that a quorum queue has dropped because they came back too often.
    pub fn dropped(&self, queue: &str) -> u64 {
        self.queues.get(queue).map_or(0, |queue| queue.dropped)
    }

    /// Whether a queue can't be asked: what it answers passively is nothing to go by.
    pub fn blind(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.blind)
    }

    /// A quorum queue that can't be asked answers a passive declare with 0/0. A classic one can
    /// always be asked.
    pub fn set_blind(&mut self, queue: &str, blind: bool) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.blind = blind && queue.options.kind == Kind::Quorum;
        }
    }
}
