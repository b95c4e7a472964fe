//! Publishing, and what delays it: alarms, transactions, deliveries that trail.

use std::collections::VecDeque;

use super::message::Content;
use super::{Broker, ConnectionId, Name, Object, Refusal};

/// Messages to one exchange.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Publish<M> {
    /// The exchange; empty for the default one.
    pub exchange: Name,
    /// The routing key.
    pub key: Name,
    /// Headers as JSON text; empty for none.
    pub headers: Name,
    /// The first message.
    pub first: M,
    /// How many messages there are in the run.
    pub count: u64,
}

impl<M> Publish<M> {
    /// One message without headers.
    pub fn one(exchange: &str, key: &str, message: M) -> Self {
        let headers = Name::from("");
        Self { exchange: exchange.into(), key: key.into(), headers, first: message, count: 1 }
    }
}

/// What became of a publish. Only [`Published::Arrived`] is confirmed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Published {
    /// In so many queues; in none: a mandatory message is returned.
    Arrived(usize),
    /// Routed to so many queues, not arrived: waits for [`Broker::flush`] or [`Broker::commit`].
    Pending(usize),
    /// Not read, because of an alarm.
    Blocked,
}

/// Routed, not arrived in these queues.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Routed<M> {
    queues: Vec<Name>,
    first: M,
    count: u64,
}

impl<M: Content> Broker<M> {
    /// Publishes. On a transactional connection the message is routed now and arrives with the
    /// commit; behind trailing messages of the same connection it trails them.
    pub fn publish(
        &mut self,
        connection: ConnectionId,
        publish: Publish<M>,
    ) -> Result<Published, Refusal> {
        self.send(connection, publish, false)
    }

    /// Publishes as one who does not wait for confirms: routed by the bindings of this moment, the
    /// messages arrive with [`Self::flush`], however the bindings are by then.
    pub fn publish_trailing(
        &mut self,
        connection: ConnectionId,
        publish: Publish<M>,
    ) -> Result<Published, Refusal> {
        self.send(connection, publish, true)
    }

    fn send(
        &mut self,
        connection: ConnectionId,
        publish: Publish<M>,
        trails: bool,
    ) -> Result<Published, Refusal> {
        self.connection(connection)?;
        if self.alarm {
            self.blocked.push_back((connection, publish));
            return Ok(Published::Blocked);
        }
        self.check_publish(connection, &publish.exchange)?;
        let queues = self.route(&publish.exchange, &publish.key, &publish.headers);
        let reached = queues.len();
        let routed = Routed { queues, first: publish.first, count: publish.count };
        if let Some(transaction) = &mut self.connection(connection)?.transaction {
            transaction.push_back(routed);
            return Ok(Published::Pending(reached));
        }
        if reached > 0 && (trails || self.trailing.contains_key(&connection)) {
            self.trailing.entry(connection).or_default().push_back(routed);
            return Ok(Published::Pending(reached));
        }
        self.arrive(&routed);
        Ok(Published::Arrived(reached))
    }

    fn check_publish(&self, connection: ConnectionId, exchange: &str) -> Result<(), Refusal> {
        self.check(connection)?;
        if exchange.is_empty() {
            return Ok(());
        }
        self.exchange_kind(exchange).ok_or_else(|| Refusal::no_exchange(exchange))?;
        if self.exchanges.get(exchange).is_some_and(|it| it.internal) {
            let (object, why) = (Object::Exchange, "it is internal");
            return Err(Refusal::AccessRefused { object, name: exchange.into(), why });
        }
        Ok(())
    }

    /// A queue that is gone by now loses its copy, as the real one.
    fn arrive(&mut self, routed: &Routed<M>) {
        for name in &routed.queues {
            if let Some(queue) = self.queues.get_mut(name) {
                queue.enqueue(routed.first.clone(), routed.count, self.now);
                self.feed(name);
            }
        }
    }

    /// Lets the oldest trailing publishes of a connection arrive, at most so many; how many did.
    /// The connection need not exist any more.
    pub fn flush(&mut self, connection: ConnectionId, at_most: usize) -> usize {
        let Some(mut trailing) = self.trailing.remove(&connection) else { return 0 };
        let later = trailing.split_off(at_most.min(trailing.len()));
        if !later.is_empty() {
            self.trailing.insert(connection, later);
        }
        let arrived = trailing.len();
        for routed in trailing {
            self.arrive(&routed);
        }
        arrived
    }

    /// Lets the oldest trailing publish of a connection that is on its way to `queue` arrive there:
    /// each queue gets the messages of one connection in order, but at its own time. Whether there
    /// was one.
    pub fn flush_into(&mut self, connection: ConnectionId, queue: &str) -> bool {
        let Some(trailing) = self.trailing.get_mut(&connection) else { return false };
        let bound = |routed: &Routed<M>| routed.queues.iter().position(|it| **it == *queue);
        let due = trailing.iter_mut().find_map(|routed| bound(routed).map(|at| (routed, at)));
        let Some((routed, at)) = due else { return false };
        let queues = vec![routed.queues.remove(at)];
        let arriving = Routed { queues, first: routed.first.clone(), count: routed.count };
        while trailing.front().is_some_and(|routed| routed.queues.is_empty()) {
            trailing.pop_front();
        }
        if trailing.is_empty() {
            self.trailing.remove(&connection);
        }
        self.arrive(&arriving);
        true
    }

    /// The queues in which a connection's latest trailing publish has yet to arrive.
    pub fn trails_to(&self, connection: ConnectionId) -> &[Name] {
        let last = self.trailing.get(&connection).and_then(VecDeque::back);
        last.map_or(&[], |routed| &routed.queues)
    }

    /// What was published and has not arrived everywhere, so that nobody has had it confirmed, as
    /// `(connection, first, count)`.
    pub fn unconfirmed(&self) -> impl Iterator<Item = (ConnectionId, &M, u64)> {
        let trailing = self.trailing.iter().map(|(id, all)| (*id, all));
        let open =
            self.connections.iter().filter_map(|(id, it)| Some((*id, it.transaction.as_ref()?)));
        let routed = trailing.chain(open).flat_map(|(id, all)| all.iter().map(move |it| (id, it)));
        let blocked = self.blocked.iter().map(|(id, it)| (*id, &it.first, it.count));
        routed.map(|(id, it)| (id, &it.first, it.count)).chain(blocked)
    }

    /// Makes a connection's channel transactional.
    pub fn select_transaction(&mut self, connection: ConnectionId) -> Result<(), Refusal> {
        self.connection(connection)?.transaction.get_or_insert_default();
        Ok(())
    }

    /// The transaction's publishes arrive, where they were routed when they were published; the
    /// next transaction begins.
    pub fn commit(&mut self, connection: ConnectionId) -> Result<(), Refusal> {
        let transaction = self.connection(connection)?.transaction.as_mut();
        for routed in transaction.map(std::mem::take).unwrap_or_default() {
            self.arrive(&routed);
        }
        Ok(())
    }

    /// A memory or disk alarm: publishes are not read until it is lifted.
    pub fn raise_alarm(&mut self) {
        self.alarm = true;
    }

    /// The alarm ends; what was sent meanwhile is read, in order, also from clients that have gone.
    /// Returns what became of it.
    pub fn lift_alarm(&mut self) -> Vec<(ConnectionId, Result<Published, Refusal>)> {
        self.alarm = false;
        let mut read = Vec::new();
        for (connection, publish) in std::mem::take(&mut self.blocked) {
            let outcome = if self.connected(connection) {
                self.publish(connection, publish)
            } else {
                let queues = self.route(&publish.exchange, &publish.key, &publish.headers);
                let reached = queues.len();
                self.arrive(&Routed { queues, first: publish.first, count: publish.count });
                Ok(Published::Arrived(reached))
            };
            read.push((connection, outcome));
        }
        read
    }

    /// Whether an alarm is in force.
    pub fn alarm(&self) -> bool {
        self.alarm
    }
}
