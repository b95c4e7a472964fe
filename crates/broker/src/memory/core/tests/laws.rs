//! Laws that hold whatever happens.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Publish(u64),
    Consume(u64),
    Read(usize, u64),
    Ack(usize, bool),
    Return(usize, bool),
    Cancel(usize),
    Close(usize),
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0..4_usize;
    let step = prop_oneof![
        4 => (1..6_u64).prop_map(Step::Publish),
        2 => (0..4_u64).prop_map(Step::Consume),
        4 => (who.clone(), 1..5_u64).prop_map(|(who, count)| Step::Read(who, count)),
        4 => (who.clone(), any::<bool>()).prop_map(|(who, multiple)| Step::Ack(who, multiple)),
        2 => (who.clone(), any::<bool>()).prop_map(|(who, multiple)| Step::Return(who, multiple)),
        1 => who.clone().prop_map(Step::Cancel),
        1 => who.clone().prop_map(Step::Close),
        1 => who.prop_map(Step::Drop),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A consumer on a connection of its own, and the last tag it read.
struct User {
    connection: ConnectionId,
    consumer: ConsumerId,
    last: u64,
}

/// One queue and its users. `one_by_one`: no runs are published or read.
struct Play {
    bench: Bench,
    users: Vec<User>,
    one_by_one: bool,
    published: u64,
    acknowledged: u64,
}

impl Play {
    fn new(options: QueueOptions, one_by_one: bool) -> Self {
        let bench = Bench::with("q", options);
        Self { bench, users: Vec::new(), one_by_one, published: 0, acknowledged: 0 }
    }

    fn act(&mut self, step: &Step) {
        let broker = &mut self.bench.broker;
        let user = |users: &Vec<User>, who: usize| (!users.is_empty()).then(|| who % users.len());
        match *step {
            Step::Publish(count) => {
                let (from, to) = (self.published + 1, self.published + count);
                if self.one_by_one {
                    (from..=to).for_each(|n| self.bench.publish("q", n..=n));
                } else {
                    self.bench.publish("q", from..=to);
                }
                self.published = to;
            }
            Step::Consume(count) => {
                let connection = broker.connect("guest", "user");
                let consumer = broker.consume(connection, "q", prefetch(count)).unwrap();
                self.users.push(User { connection, consumer, last: 0 });
            }
            Step::Read(who, count) => {
                let Some(at) = user(&self.users, who) else { return };
                self.read(at, count);
            }
            Step::Ack(who, multiple) => {
                let Some(at) = user(&self.users, who) else { return };
                let User { consumer, last, .. } = self.users[at];
                self.acknowledged += broker.ack(consumer, last, multiple).unwrap_or(0);
            }
            Step::Return(who, multiple) => {
                let Some(at) = user(&self.users, who) else { return };
                let User { consumer, last, .. } = self.users[at];
                // Gone or settled already: the broker refuses, and closes the channel.
                let _ = broker.nack(consumer, last, multiple);
            }
            Step::Cancel(who) => {
                let Some(at) = user(&self.users, who) else { return };
                let _ = broker.cancel(self.users[at].consumer);
            }
            Step::Close(who) => {
                let Some(at) = user(&self.users, who) else { return };
                broker.close_channel(self.users[at].consumer);
            }
            Step::Drop(who) => {
                let Some(at) = user(&self.users, who) else { return };
                broker.close(self.users.remove(at).connection);
            }
        }
    }

    fn read(&mut self, at: usize, mut count: u64) {
        while count > 0 {
            let at_most = if self.one_by_one { 1 } else { count };
            let user = &mut self.users[at];
            let Ok(Some(delivery)) = self.bench.broker.take(user.consumer, at_most) else { return };
            user.last = delivery.tag + delivery.count - 1;
            count -= delivery.count;
        }
    }

    /// Every message once: ready, held or acknowledged.
    fn conserved(&self) -> Result<(), TestCaseError> {
        let broker = &self.bench.broker;
        let figures = broker.figures("q").unwrap();
        let there = figures.ready + figures.unacknowledged + self.acknowledged;
        prop_assert_eq!(there + broker.dropped("q"), self.published);
        let mut all = self.bench.ready("q");
        prop_assert_eq!(all.len() as u64, figures.ready);
        for (_, first, count) in broker.held("q") {
            all.extend(first.sequence..first.sequence + count);
        }
        prop_assert_eq!(all.len() as u64, figures.ready + figures.unacknowledged);
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len() as u64, figures.ready + figures.unacknowledged, "one twice");
        Ok(())
    }
}

fn kinds() -> impl Strategy<Value = QueueOptions> {
    prop_oneof![
        Just(QueueOptions::durable(Kind::Classic)),
        Just(QueueOptions::side()),
        Just(QueueOptions::durable(Kind::Quorum)),
    ]
}

proptest! {
    /// Nothing is lost or doubled, what is ready is in the order of publication, and prefetch is
    /// an upper bound.
    #[test]
    fn messages_are_conserved_and_ordered(options in kinds(), steps in steps()) {
        let mut play = Play::new(options, false);
        for step in steps {
            play.act(&step);
            play.conserved()?;
            let ready = play.bench.ready("q");
            prop_assert!(ready.is_sorted(), "{:?} after {:?}", ready, step);
            let broker = &play.bench.broker;
            for view in broker.consumers_of("q") {
                let theirs = broker.held("q").filter(|(holder, ..)| *holder == view.id);
                let held: u64 = theirs.map(|(_, _, count)| count).sum();
                let limit = view.options.prefetch;
                prop_assert!(limit == 0 || held <= limit, "{} held of {}", held, limit);
            }
        }
    }

    /// Counting runs is the same as handling message by message.
    #[test]
    fn runs_are_only_a_notation(options in kinds(), steps in steps()) {
        let (mut runs, mut singles) = (Play::new(options.clone(), false), Play::new(options, true));
        for step in steps {
            runs.act(&step);
            singles.act(&step);
            prop_assert_eq!(runs.bench.ready("q"), singles.bench.ready("q"));
            prop_assert_eq!(runs.bench.broker.figures("q"), singles.bench.broker.figures("q"));
            prop_assert_eq!(runs.bench.counts("q"), singles.bench.counts("q"));
        }
    }

    /// A broker where nobody is left has everything that was not acknowledged, in order.
    #[test]
    fn everything_comes_back(options in kinds(), steps in steps()) {
        prop_assume!(options.delivery_limit.is_some() || options.kind == Kind::Classic);
        let mut play = Play::new(options, false);
        for step in &steps {
            play.act(step);
        }
        play.bench.broker.restart();
        let figures = play.bench.broker.figures("q").unwrap();
        prop_assert_eq!(figures.unacknowledged, 0);
        prop_assert_eq!(figures.ready, play.published - play.acknowledged);
        prop_assert!(play.bench.ready("q").is_sorted());
    }
}
