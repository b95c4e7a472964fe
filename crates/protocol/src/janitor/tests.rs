use super::*;

const ID: &str = "0f9d3c1eaa";
const Q: &str = "app.events";

/// A broker as a migration has left it.
struct Broker {
    found: Belongings,
    held: BTreeMap<String, Held>,
    living: BTreeSet<String>,
    unheard: BTreeSet<String>,
    there: bool,
}

fn names() -> Names {
    Names::new(Q, ID)
}

fn from(source: &str, key: &str) -> Binding {
    Binding { source: source.to_owned(), routing_key: key.to_owned(), arguments: String::new() }
}

fn bind_queue(binding: Binding) -> Topology {
    Topology::BindQueue { queue: Q.to_owned(), binding }
}

impl Broker {
    /// After cut B: all that a migration makes, and nobody on it.
    fn cut_b() -> Self {
        let names = names();
        let mut broker = Self {
            found: Belongings::default(),
            held: BTreeMap::new(),
            living: BTreeSet::new(),
            unheard: BTreeSet::new(),
            there: true,
        };
        broker.found.exchanges = names.exchanges().map(str::to_owned).into();
        for queue in names.side_queues() {
            broker.found.queues.insert(queue.to_owned());
            broker.held.insert(queue.to_owned(), Held { empty: true, ..Held::default() });
        }
        for (source, to, is_queue) in [
            (names.hold.as_str(), names.s1.as_str(), true),
            (&names.both, &names.s2, true),
            (&names.both, Q, true),
            (&names.gate, &names.both, false),
        ] {
            broker.link(Binding::plain(source), to, is_queue);
        }
        broker.link(from("events", "a.#"), &names.gate, false);
        broker.link(from("events", "b.#"), &names.gate, false);
        broker
    }

    fn link(&mut self, binding: Binding, to: &str, is_queue: bool) {
        self.found.links.push(Link { binding, to: to.to_owned(), is_queue });
    }

    fn chores(&self) -> Chores {
        chores(&Facts {
            primary: Q,
            there: self.there,
            found: &self.found,
            living: &self.living,
            held: &self.held,
            unheard: &self.unheard,
        })
    }

    /// As the broker does it.
    fn apply(&mut self, change: &Topology) {
        match change {
            Topology::BindQueue { queue, binding } => self.link(binding.clone(), queue, true),
            Topology::UnbindExchange { destination, binding } => self
                .found
                .links
                .retain(|it| it.to != *destination || it.binding != *binding || it.is_queue),
            Topology::DeleteExchange { name } => {
                self.found.exchanges.remove(name);
                self.found.links.retain(|it| it.binding.source != *name && it.to != *name);
            }
            Topology::DeleteQueue { name } => {
                self.found.queues.remove(name);
                self.held.remove(name);
                self.found.links.retain(|it| it.to != *name);
            }
            other => panic!("a janitor does not do {other:?}"),
        }
    }

    fn nothing_is_left(&self) -> bool {
        self.found.exchanges.is_empty() && self.found.queues.is_empty()
    }

    /// All rounds; each may end after any of its changes.
    fn tidied(mut self, mut dies_after: usize) -> Self {
        for _ in 0..100 {
            let Chores { feed, remove, .. } = self.chores();
            let todo = if feed.is_empty() { remove } else { feed };
            if todo.is_empty() {
                return self;
            }
            for change in todo {
                self.apply(&change);
                if dies_after == 0 {
                    dies_after = usize::MAX;
                    break;
                }
                dies_after -= 1;
            }
        }
        panic!("no end")
    }
}

#[test]
fn the_feed_is_given_back_before_anything_is_removed() {
    let mut broker = Broker::cut_b();
    let names = names();
    let first = broker.chores();
    let unbind = |key| Topology::UnbindExchange {
        destination: names.gate.clone(),
        binding: from("events", key),
    };
    let expected = [
        bind_queue(Binding::plain(&names.gate)),
        bind_queue(from("events", "a.#")),
        bind_queue(from("events", "b.#")),
        unbind("a.#"),
        unbind("b.#"),
    ];
    assert_eq!(first, Chores { feed: expected.into(), ..Chores::default() });
    first.feed.iter().for_each(|change| broker.apply(change));
    let second = broker.chores();
    assert!(second.feed.is_empty());
    let exchange = |change: &Topology| matches!(change, Topology::DeleteExchange { .. });
    assert!(second.remove.len() == 3 && second.remove.iter().all(exchange), "{second:?}");
    second.remove.iter().for_each(|change| broker.apply(change));
    assert_eq!(broker.chores().remove.len(), 5, "the side queues, which nothing feeds any more");
}

#[test]
fn it_can_end_anywhere_and_be_begun_again() {
    for dies_after in 0..15 {
        let broker = Broker::cut_b().tidied(dies_after);
        assert!(broker.nothing_is_left(), "{:?}", broker.found);
        let mut fed: Vec<_> = broker.found.links.iter().map(|it| it.binding.clone()).collect();
        fed.dedup();
        fed.sort();
        fed.dedup();
        assert_eq!(fed, [from("events", "a.#"), from("events", "b.#")]);
    }
}

#[test]
fn a_queue_with_messages_stays_and_is_told_of() {
    let mut broker = Broker::cut_b();
    let names = names();
    broker.held.insert(names.s1.clone(), Held { ready: 3, ..Held::default() });
    let broker = broker.tidied(usize::MAX);
    assert_eq!(broker.found.queues, BTreeSet::from([names.s1.clone()]));
    let chores = broker.chores();
    assert!(chores.remove.is_empty());
    assert_eq!(chores.warnings, [Warning::Holds { queue: names.s1, ready: 3 }]);
    let said = chores.warnings[0].to_string();
    assert!(said.contains("holds 3 message(s)") && said.contains("operations.md"), "{said}");
}

#[test]
fn what_is_unacknowledged_is_in_it() {
    let mut broker = Broker::cut_b();
    let names = names();
    broker.held.insert(names.s2.clone(), Held::default());
    assert_eq!(broker.tidied(usize::MAX).found.queues, BTreeSet::from([names.s2]));
}

#[test]
fn who_consumes_a_side_queue_keeps_all_of_it() {
    let names = names();
    for queue in names.side_queues() {
        let mut broker = Broker::cut_b();
        broker.held.insert(queue.to_owned(), Held { consumers: 1, ..Held::default() });
        let warnings = vec![Warning::InUse { queue: queue.to_owned(), consumers: 1 }];
        assert_eq!(broker.chores(), Chores { warnings, ..Chores::default() });
    }
}

#[test]
fn the_living_are_left_alone_with_both_their_hops() {
    let mut broker = Broker::cut_b();
    let second = names().second();
    broker.found.queues.insert(second.s1.clone());
    broker.found.exchanges.insert(second.gate);
    broker.living.insert(ID.to_owned());
    assert_eq!(broker.chores(), Chores::default());
    assert!(!is_suspect(Q, &broker.found, &broker.living));
    broker.living = BTreeSet::from(["another".to_owned()]);
    assert!(is_suspect(Q, &broker.found, &broker.living));
}

#[test]
fn another_queues_are_none_of_ours() {
    let broker = Broker::cut_b();
    assert!(!is_suspect("other", &broker.found, &broker.living));
    let theirs = Names::new("app", ID);
    assert!(!is_suspect("app", &broker.found, &broker.living), "{theirs:?}");
}

#[test]
fn the_second_hop_is_fed_by_the_first() {
    let mut broker = Broker::cut_b();
    let (names, second) = (names(), names().second());
    broker.found.exchanges.extend(second.exchanges().map(str::to_owned));
    broker.link(Binding::plain(&names.both), &second.gate, false);
    broker.link(Binding::plain(&second.both), Q, true);
    let feed = broker.chores().feed;
    let first_two = [&second.gate, &names.gate].map(|gate| bind_queue(Binding::plain(gate)));
    assert_eq!(feed[..2], first_two);
    assert!(broker.tidied(usize::MAX).nothing_is_left());
}

#[test]
fn what_others_have_bound_stays_fed() {
    let mut broker = Broker::cut_b();
    let names = names();
    broker.link(Binding::plain(&names.both), "audit", true);
    let warnings = vec![Warning::Foreign { exchange: names.both, to: "audit".to_owned() }];
    assert_eq!(broker.chores(), Chores { warnings, ..Chores::default() });
}

#[test]
fn without_its_queue_nothing_is_touched() {
    let mut broker = Broker::cut_b();
    broker.there = false;
    let warnings = vec![Warning::NoPrimary { primary: Q.to_owned() }];
    assert_eq!(broker.chores(), Chores { warnings, ..Chores::default() });
}

#[test]
fn exchanges_that_were_only_just_declared_go() {
    let mut broker = Broker::cut_b();
    broker.found.links.clear();
    broker.found.queues.clear();
    broker.held.clear();
    assert!(broker.tidied(usize::MAX).nothing_is_left());
}

#[test]
fn a_control_queue_goes_with_its_pod_unless_somebody_listens() {
    let mut broker = Broker::cut_b().tidied(usize::MAX);
    let (gone, heard) = ("ms2m.control.a".to_owned(), "ms2m.control.b".to_owned());
    broker.unheard = BTreeSet::from([gone.clone(), heard.clone(), "ms2m.control.c".to_owned()]);
    broker.held.insert(gone.clone(), Held { ready: 1, ..Held::default() });
    broker.held.insert(heard, Held { consumers: 1, ..Held::default() });
    assert_eq!(broker.chores().remove, [delete_queue(&gone)]);
}
