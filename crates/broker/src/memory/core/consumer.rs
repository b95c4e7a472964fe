//! Consumers: who is fed, what they hold, what comes back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::message::{Content, Run};
use super::queue::Queue;
use super::{Broker, ConnectionId, ConsumerId, Kind, Name, Refusal};

/// How a consumer consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConsumeOptions {
    /// Unacknowledged messages at most; 0: any number.
    pub prefetch: u64,
    /// `x-priority`.
    pub priority: i32,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self { prefetch: 10, priority: 0 }
    }
}

/// Messages that reach a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Delivery<M> {
    /// The first one's tag; the others follow without a gap.
    pub tag: u64,
    /// The first message.
    pub first: M,
    /// How many messages there are in the run.
    pub count: u64,
    /// Delivered before, to whomever.
    pub redelivered: bool,
}

/// A consumer as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConsumerView {
    /// Which one.
    pub id: ConsumerId,
    /// Whose.
    pub connection: ConnectionId,
    /// How it consumes.
    pub options: ConsumeOptions,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Consumer<M> {
    pub(super) connection: ConnectionId,
    queue: Name,
    options: ConsumeOptions,
    pub(super) cancelled: bool,
    /// Sent and not acknowledged, by tag.
    held: VecDeque<Held<M>>,
    pub(super) holding: u64,
    next_tag: u64,
    next_read: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Held<M> {
    tag: u64,
    position: u64,
    run: Run<M>,
}

impl<M: Content> Held<M> {
    fn split_off(&mut self, at: u64) -> Self {
        Self { tag: self.tag + at, position: self.position + at, run: self.run.split_off(at) }
    }
}

impl<M> Consumer<M> {
    fn room(&self) -> u64 {
        match self.options.prefetch {
            _ if self.cancelled => 0,
            0 => u64::MAX,
            prefetch => prefetch.saturating_sub(self.holding),
        }
    }
}

impl<M: Content> Consumer<M> {
    fn hold(&mut self, position: u64, run: Run<M>) {
        self.holding += run.count;
        let tag = self.next_tag;
        self.next_tag += run.count;
        self.held.push_back(Held { tag, position, run });
    }

    fn holds(&self, tag: u64) -> bool {
        self.held.iter().any(|held| (held.tag..held.tag + held.run.count).contains(&tag))
    }

    /// Lets go of the messages it holds from `first` to `last`.
    fn release(&mut self, first: u64, last: u64) -> Vec<Held<M>> {
        let (mut kept, mut released) = (VecDeque::new(), Vec::new());
        for mut held in std::mem::take(&mut self.held) {
            let end = held.tag + held.run.count;
            if end <= first || held.tag > last {
                kept.push_back(held);
                continue;
            }
            if held.tag < first {
                let rest = held.split_off(first - held.tag);
                kept.push_back(std::mem::replace(&mut held, rest));
            }
            let after = (end > last + 1).then(|| held.split_off(last + 1 - held.tag));
            self.holding -= held.run.count;
            released.push(held);
            kept.extend(after);
        }
        self.held = kept;
        released
    }
}

impl<M> Queue<M> {
    /// Who is fed next, and how many messages at most.
    fn choose(
        &mut self,
        consumers: &BTreeMap<ConsumerId, Consumer<M>>,
    ) -> Option<(ConsumerId, u64)> {
        if self.options.single_active {
            let active = self.activate(consumers)?;
            let room = consumers.get(&active)?.room();
            return (room > 0).then_some((active, room));
        }
        let hungry = |id: &&ConsumerId| consumers.get(id).is_some_and(|it| it.room() > 0);
        let priority = |id: &ConsumerId| consumers.get(id).map(|it| it.options.priority);
        let best = self.consumers.iter().filter(hungry).filter_map(priority).max()?;
        let mut peers =
            self.consumers.iter().filter(hungry).filter(|id| priority(id) == Some(best)).copied();
        let (next, alone) = (peers.next()?, peers.next().is_none());
        if alone {
            return Some((next, consumers.get(&next)?.room()));
        }
        // In turn, one by one.
        self.consumers.retain(|id| *id != next);
        self.consumers.push(next);
        Some((next, 1))
    }

    /// The single active consumer, if it may be fed. A quorum queue gives way to a newcomer of
    /// higher priority: it stops feeding the active one and waits for its acknowledgements.
    fn activate(&mut self, consumers: &BTreeMap<ConsumerId, Consumer<M>>) -> Option<ConsumerId> {
        let live = |id: &ConsumerId| consumers.get(id).filter(|it| !it.cancelled);
        let mut best: Option<(ConsumerId, i32)> = None;
        for id in &self.consumers {
            let Some(consumer) = live(id) else { continue };
            if best.is_none_or(|(_, priority)| consumer.options.priority > priority) {
                best = Some((*id, consumer.options.priority));
            }
        }
        let active = self.active.and_then(|id| Some((id, live(&id)?)));
        match (active, best) {
            (Some((_, active)), Some((_, priority)))
                if self.options.kind == Kind::Quorum && priority > active.options.priority =>
            {
                if active.holding > 0 {
                    return None;
                }
                self.active = best.map(|(id, _)| id);
            }
            (Some(_), _) => {}
            (None, _) => self.active = best.map(|(id, _)| id),
        }
        self.active
    }
}

impl<M: Content> Broker<M> {
    /// Registers a consumer.
    pub fn consume(
        &mut self,
        connection: ConnectionId,
        queue: &str,
        options: ConsumeOptions,
    ) -> Result<ConsumerId, Refusal> {
        self.check(connection)?;
        self.queue_for(connection, queue)?;
        let id = ConsumerId(self.id());
        let consumer = Consumer {
            connection,
            queue: queue.into(),
            options,
            cancelled: false,
            held: VecDeque::new(),
            holding: 0,
            next_tag: 1,
            next_read: 1,
        };
        self.consumers.insert(id, consumer);
        self.queue_for(connection, queue)?.consumers.push(id);
        self.feed(queue);
        Ok(id)
    }

    /// Sends a consumer nothing more. What was sent already is still to be read and acknowledged;
    /// without anything of that, the consumer is gone at once.
    pub fn cancel(&mut self, consumer: ConsumerId) -> Result<(), Refusal> {
        let found = self.consumers.get_mut(&consumer).ok_or(Refusal::ConsumerGone)?;
        found.cancelled = true;
        let queue = found.queue.clone();
        self.tidy(consumer);
        self.feed(&queue);
        Ok(())
    }

    /// The next messages that reach a consumer, at most so many and of one run.
    pub fn take(
        &mut self,
        consumer: ConsumerId,
        at_most: u64,
    ) -> Result<Option<Delivery<M>>, Refusal> {
        let found = self.consumers.get_mut(&consumer).ok_or(Refusal::ConsumerGone)?;
        let tag = found.next_read;
        let due = found.held.iter().find(|held| tag < held.tag + held.run.count);
        let Some(held) = due.filter(|_| at_most > 0) else { return Ok(None) };
        let skipped = tag - held.tag;
        let delivery = Delivery {
            tag,
            first: held.run.first.later(skipped),
            count: (held.run.count - skipped).min(at_most),
            redelivered: held.run.returns > 0,
        };
        found.next_read += delivery.count;
        Ok(Some(delivery))
    }

    /// Acknowledges the message `tag` and, with `multiple`, all before it (0: all that were read).
    /// How many. An unknown tag closes the channel: the consumer is gone, what it held returns.
    pub fn ack(&mut self, consumer: ConsumerId, tag: u64, multiple: bool) -> Result<u64, Refusal> {
        let (queue, settled) = self.settle(consumer, tag, multiple)?;
        let count = settled.iter().map(|held| held.run.count).sum();
        if let Some(found) = self.queues.get_mut(&queue) {
            found.totals.acknowledged += count;
            found.emissions.stirred = true;
        }
        self.tidy(consumer);
        self.feed(&queue);
        Ok(count)
    }

    /// Gives back to the queue; otherwise as [`Self::ack`].
    pub fn nack(&mut self, consumer: ConsumerId, tag: u64, multiple: bool) -> Result<u64, Refusal> {
        let (queue, settled) = self.settle(consumer, tag, multiple)?;
        let count = settled.iter().map(|held| held.run.count).sum();
        self.put_back(&queue, settled);
        self.tidy(consumer);
        self.feed(&queue);
        Ok(count)
    }

    fn settle(
        &mut self,
        consumer: ConsumerId,
        tag: u64,
        multiple: bool,
    ) -> Result<(Name, Vec<Held<M>>), Refusal> {
        let found = self.consumers.get_mut(&consumer).ok_or(Refusal::ConsumerGone)?;
        let all = multiple && tag == 0;
        let last = if all { found.next_read - 1 } else { tag };
        let read = last < found.next_read;
        let known = read && (all || found.holds(last));
        let first = if multiple { 1 } else { tag };
        let settled = if known { found.release(first, last) } else { Vec::new() };
        if !known {
            let name = found.queue.clone();
            self.close_channel(consumer);
            return Err(Refusal::PreconditionFailed { name, why: "unknown delivery tag" });
        }
        Ok((found.queue.clone(), settled))
    }

    /// Ends a consumer with its channel: what it held returns.
    pub fn close_channel(&mut self, consumer: ConsumerId) {
        self.drop_consumers(&[consumer]);
    }

    /// The live consumers of a queue.
    pub fn consumers_of(&self, queue: &str) -> impl Iterator<Item = ConsumerView> {
        let ids = self.queues.get(queue).into_iter().flat_map(|queue| &queue.consumers);
        let found = ids.filter_map(|id| Some((*id, self.consumers.get(id)?)));
        found.filter(|(_, it)| !it.cancelled).map(|(id, it)| ConsumerView {
            id,
            connection: it.connection,
            options: it.options,
        })
    }

    /// The ready messages of a queue in order, as `(first, count, redelivered)`.
    pub fn ready(&self, queue: &str) -> impl Iterator<Item = (&M, u64, bool)> {
        let runs = self.queues.get(queue).into_iter().flat_map(|queue| queue.ready.runs());
        runs.map(|run| (&run.first, run.count, run.returns > 0))
    }

    /// The messages of a queue that are sent and not acknowledged, as `(holder, first, count)`.
    pub fn held(&self, queue: &str) -> impl Iterator<Item = (ConsumerId, &M, u64)> {
        let ids = self.queues.get(queue).into_iter().flat_map(|queue| &queue.consumers);
        let found = ids.filter_map(|id| Some((*id, self.consumers.get(id)?)));
        found.flat_map(|(id, it)| {
            it.held.iter().map(move |held| (id, &held.run.first, held.run.count))
        })
    }

    pub(super) fn drop_consumers(&mut self, ids: &[ConsumerId]) {
        let mut returned: BTreeMap<Name, Vec<Held<M>>> = BTreeMap::new();
        for id in ids {
            let Some(mut consumer) = self.consumers.remove(id) else { continue };
            let back = returned.entry(consumer.queue.clone()).or_default();
            back.extend(std::mem::take(&mut consumer.held));
            if let Some(queue) = self.queues.get_mut(&consumer.queue) {
                queue.consumers.retain(|other| other != id);
            }
        }
        let queues: BTreeSet<Name> = returned.keys().cloned().collect();
        for (queue, held) in returned {
            self.put_back(&queue, held);
        }
        for queue in queues {
            self.feed(&queue);
        }
    }

    fn put_back(&mut self, queue: &str, mut held: Vec<Held<M>>) {
        let Some(queue) = self.queues.get_mut(queue) else { return };
        queue.emissions.stirred = true;
        held.sort_by_key(|held| held.position);
        for Held { tag: _, position, run } in held {
            queue.put_back(position, run);
        }
    }

    /// A cancelled consumer that holds nothing is no more.
    fn tidy(&mut self, consumer: ConsumerId) {
        let done = |it: &Consumer<M>| it.cancelled && it.held.is_empty();
        if !self.consumers.get(&consumer).is_some_and(done) {
            return;
        }
        if let Some(gone) = self.consumers.remove(&consumer)
            && let Some(queue) = self.queues.get_mut(&gone.queue)
        {
            queue.consumers.retain(|other| *other != consumer);
        }
    }

    /// Sends what is ready to who may have it.
    pub(super) fn feed(&mut self, name: &str) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        queue.emissions.stirred = true;
        if queue.options.single_active {
            queue.activate(&self.consumers);
        }
        while queue.ready.count() > 0 {
            let Some((id, room)) = queue.choose(&self.consumers) else { return };
            let (Some(consumer), Some((position, run))) =
                (self.consumers.get_mut(&id), queue.ready.pop(room))
            else {
                return;
            };
            if run.returns > 0 {
                queue.totals.redelivered += run.count;
            }
            consumer.hold(position, run);
        }
        let holds = |id: &ConsumerId| self.consumers.get(id).is_some_and(|it| it.holding > 0);
        if !queue.consumers.iter().any(holds) {
            queue.rewind();
        }
    }
}
