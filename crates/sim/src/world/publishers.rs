//! The publishers' part of the world: they don't wait for confirms, so what they publish trails,
//! into each queue at its own time; one publishes in transactions.

use shadow_broker::memory::core::{ConnectionId, Name, Publish, Published, Serial};

use super::{Event, World};
use crate::message::Message;

/// A deep backlog has come in so many turns of its publishers.
const TURNS: u64 = 64;

/// Who publishes how many of a backlog, one turn after the other.
pub(crate) fn turns(backlog: u32, publishers: u8) -> impl Iterator<Item = (u8, u64)> {
    let backlog = u64::from(backlog);
    let share = backlog.div_ceil(TURNS).max(1);
    let shares = (0..backlog.div_ceil(share)).map(move |turn| share.min(backlog - turn * share));
    (0..publishers).cycle().zip(shares)
}

impl World {
    /// The backlog, the publishers taking turns.
    pub(super) fn pile_up(&mut self) {
        for (publisher, count) in turns(self.scenario.backlog, self.scenario.publishers) {
            let (connection, publish) = self.next_publish(publisher, count);
            // There is no alarm yet, and nobody has closed the connection.
            let _ = self.broker.publish(connection, publish);
        }
        self.piled_up.clone_from(&self.published);
    }

    pub(super) fn publish_and_go_on(&mut self, publisher: u8) {
        if !self.publishing {
            return;
        }
        if self.scenario.alone() {
            self.ask(publisher);
        } else if self.now >= self.broker_down_until {
            let (connection, publish) = self.next_publish(publisher, self.scenario.burst);
            // Under an alarm it arrives when that is over.
            if let Ok(Published::Pending(_)) = self.broker.publish_trailing(connection, publish) {
                self.trail(connection);
            }
        }
        let after = if let Some(rate) = self.tempo.rate {
            self.until_next(publisher, rate)
        } else {
            self.scenario.interval + self.rng.u64(..=self.scenario.interval / 2)
        };
        self.at(after, Event::Publish(publisher));
    }

    /// How long until a publisher's next message at a rate of so many per second in all, counted
    /// from the beginning, so that a clock of milliseconds does not bend the rate.
    fn until_next(&self, publisher: u8, rate: u64) -> u64 {
        let publishers = u64::from(self.scenario.publishers);
        let number = usize::from(publisher);
        let sent = self.published[number] - self.piled_up[number];
        // Publishers take turns.
        let due = (sent * publishers + u64::from(publisher)) * 1_000 / rate.max(1);
        due.max(self.broker_down_until).saturating_sub(self.now)
    }

    /// The next messages of a publisher, and its connection.
    fn next_publish(&mut self, publisher: u8, count: u64) -> (ConnectionId, Publish<Message>) {
        let number = usize::from(publisher);
        let known = self.publishers[number].filter(|it| self.broker.connected(*it));
        let connection = known.unwrap_or_else(|| self.broker.connect("10.0.2.1", "publisher"));
        self.publishers[number] = Some(connection);
        let sequence = self.published[number] + 1;
        self.published[number] += count;
        if let Some(watch) = &mut self.watch {
            watch.published(publisher, self.published[number], self.now);
        }
        let publish = Publish {
            exchange: self.stage.exchange.clone(),
            key: self.stage.nothing.clone(),
            headers: self.stage.nothing.clone(),
            first: Message::Data(Serial { publisher: publisher.into(), sequence }),
            count,
        };
        (connection, publish)
    }

    /// What was published last arrives in each queue when it likes, but in order.
    fn trail(&mut self, connection: ConnectionId) {
        let longest = if self.now < self.flood_until { 280 } else { self.scenario.trail };
        for queue in self.broker.trails_to(connection).to_vec() {
            let due = self.now + if longest > 0 { self.rng.u64(..=longest) } else { 0 };
            let last = self.arrivals.entry((connection, queue.clone())).or_default();
            *last = due.max(*last);
            let after = *last - self.now;
            if after == 0 {
                self.arrive(connection, &queue);
            } else {
                self.at(after, Event::Arrive(connection, queue));
            }
        }
    }

    /// What was held up behind messages that trail arrives after them.
    pub(super) fn trail_behind(&mut self, connection: ConnectionId) {
        let theirs = self.arrivals.iter().filter(|((of, _), _)| *of == connection);
        let last = theirs.map(|(_, due)| *due).max().unwrap_or(self.now);
        self.at(last.saturating_sub(self.now), Event::Flush(connection));
    }

    pub(super) fn flush(&mut self, connection: ConnectionId) {
        self.broker.flush(connection, usize::MAX);
        self.wake_all();
    }

    pub(super) fn arrive(&mut self, connection: ConnectionId, queue: &Name) {
        if self.broker.flush_into(connection, queue) {
            self.nudge_consumers(queue);
        }
    }

    /// A transaction begins, routed as the bindings are now.
    pub(super) fn transact(&mut self, lasts: u64) {
        if self.now < self.broker_down_until {
            return;
        }
        let bookkeeper = self.scenario.publishers;
        let count = self.rng.u64(1..4);
        let (connection, publish) = self.next_publish(bookkeeper, count);
        let begun = self.broker.select_transaction(connection);
        if begun.and_then(|()| self.broker.publish(connection, publish)).is_ok() {
            self.at(lasts, Event::Commit(connection));
        }
    }

    /// The transaction ends, and its publisher with it.
    pub(super) fn commit(&mut self, connection: ConnectionId) {
        let _ = self.broker.commit(connection);
        self.broker.close(connection);
        self.wake_all();
    }

    /// What the broker is about to forget with a restart, nobody has had confirmed.
    pub(super) fn forget_unconfirmed(&mut self) {
        for (_, message, count) in self.broker.unconfirmed() {
            if let Message::Data(first) = message {
                self.unconfirmed.insert((*first, count));
            }
        }
    }
}
