//! What is left at a broker of migrations that are no more, and what may be done about it.
//!
//! The feed is given back to the queue first, then nothing feeds the rest, and only what is empty then is
//! deleted. Where somebody still consumes a side queue all of it stays: it works, and what else has been
//! applied by whom only the migration knew. Each look is decided on anew, so that this can end anywhere
//! and be begun again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::broker::{Binding, Topology};
use crate::names::{Names, exchange_of, first_hop, side_queue_of};

/// What migrations have made at a broker, whoever they were, and the control queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Belongings {
    /// Exchanges.
    pub exchanges: BTreeSet<String>,
    /// Side queues and control queues.
    pub queues: BTreeSet<String>,
    /// All bindings of those exchanges and side queues, the default exchange's left out, sorted.
    pub links: Vec<Link>,
}

/// One binding and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Where messages come from.
    pub binding: Binding,
    /// Where they go.
    pub to: String,
    /// That is a queue, not an exchange.
    pub is_queue: bool,
}

/// What a queue holds at this instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Messages waiting.
    pub ready: u64,
    /// Consumers registered.
    pub consumers: u32,
    /// The broker proves that there is nothing in it, unacknowledged messages among it.
    pub empty: bool,
}

/// All that counts for one primary queue, whose lock is held.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `Q`.
    pub primary: &'a str,
    /// It exists.
    pub there: bool,
    /// All that was found at the broker.
    pub found: &'a Belongings,
    /// The ids of the migrations that exist, of whatever queue.
    pub living: &'a BTreeSet<String>,
    /// What is in the queues that might be deleted.
    pub held: &'a BTreeMap<String, Held>,
    /// Control queues of pods that do not exist.
    pub unheard: &'a BTreeSet<String>,
}

/// What is to be done now. What is removed may be looked at again before: nothing else is done then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chores {
    /// First, and then for a while nothing.
    pub feed: Vec<Topology>,
    /// Where there is nothing to feed any more.
    pub remove: Vec<Topology>,
    /// What stays, and why.
    pub warnings: Vec<Warning>,
}

/// Why something is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Warning {
    /// Somebody consumes a side queue.
    InUse {
        /// The side queue.
        queue: String,
        /// By how many.
        consumers: u32,
    },
    /// Messages wait in a side queue.
    Holds {
        /// The side queue.
        queue: String,
        /// How many.
        ready: u64,
    },
    /// Somebody has bound something of his own.
    Foreign {
        /// To the migration's exchange.
        exchange: String,
        /// What it leads to.
        to: String,
    },
    /// There is no primary queue to give the feed back to.
    NoPrimary {
        /// The queue.
        primary: String,
    },
}

impl Warning {
    /// A word for events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "SideQueueInUse",
            Self::Holds { .. } => "SideQueueHoldsMessages",
            Self::Foreign { .. } => "ForeignBinding",
            Self::NoPrimary { .. } => "QueueMissing",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let see = "see docs/operations.md, \"The janitor\"";
        match self {
            Self::InUse { queue, consumers } => write!(
                f,
                "queue {queue} is left of a migration that is gone, and has {consumers} consumer(s): it \
                 stays, with all that feeds it; send its consumer back to its own queue; {see}"
            ),
            Self::Holds { queue, ready } => write!(
                f,
                "queue {queue} is left of a migration that is gone, and holds {ready} message(s): it is \
                 not deleted; find out whether anybody has applied them, then move or purge them; {see}"
            ),
            Self::Foreign { exchange, to } => write!(
                f,
                "exchange {exchange} is left of a migration that is gone, and somebody has bound {to} to \
                 it: it stays; bind that to the application's exchange; {see}"
            ),
            Self::NoPrimary { primary } => write!(
                f,
                "queue {primary} does not exist, but what a migration of it has made does, which is gone: \
                 it stays; declare the queue again, or delete what is left; {see}"
            ),
        }
    }
}

/// Whether there is anything of a migration of `primary` that is not among the `living`.
pub fn is_suspect(primary: &str, found: &Belongings, living: &BTreeSet<String>) -> bool {
    !dead(primary, found, living).is_empty()
}

/// The side queues of `primary` that belong to nobody.
pub fn dead_queues<'a>(
    primary: &'a str,
    found: &'a Belongings,
    living: &'a BTreeSet<String>,
) -> impl Iterator<Item = &'a String> {
    found.queues.iter().filter(move |name| {
        let of = side_queue_of(name).filter(|(of, _)| *of == primary);
        of.is_some_and(|(_, id)| !living.contains(first_hop(id)))
    })
}

/// What is to be done for one queue now.
pub fn chores(facts: &Facts) -> Chores {
    let mut chores = Chores::default();
    for id in dead(facts.primary, facts.found, facts.living) {
        Remains { facts, id: &id }.tidy(&mut chores);
    }
    let silent = |queue: &&String| facts.held.get(*queue).is_some_and(|held| held.consumers == 0);
    chores.remove.extend(facts.unheard.iter().filter(silent).map(|it| delete_queue(it)));
    chores
}

/// The ids of migrations of `primary` that are no more, both their hops one. An exchange that nothing is
/// bound to and that comes with no queue is nobody's: any queue's lock will do.
fn dead(primary: &str, found: &Belongings, living: &BTreeSet<String>) -> BTreeSet<String> {
    let sides = found.queues.iter().filter_map(|name| side_queue_of(name));
    let by_side = sides.clone().filter(|(of, _)| *of == primary).map(|(_, id)| id);
    let feeds = found.links.iter().filter(|link| link.is_queue && link.to == primary);
    let by_link = feeds.filter_map(|link| exchange_of(&link.binding.source));
    let made = found.exchanges.iter().filter_map(|name| exchange_of(name));
    let attached = |id: &str| {
        let of = |name: &str| exchange_of(name).is_some_and(|it| first_hop(it) == first_hop(id));
        sides.clone().any(|(_, it)| first_hop(it) == first_hop(id))
            || found.links.iter().any(|link| of(&link.binding.source) || of(&link.to))
    };
    let inert = made.filter(|id| !attached(id));
    let all = by_side.chain(by_link).chain(inert).map(first_hop);
    all.filter(|id| !living.contains(*id)).map(str::to_owned).collect()
}

fn delete_queue(name: &str) -> Topology {
    Topology::DeleteQueue { name: name.to_owned() }
}

/// What is left of one migration.
struct Remains<'a> {
    facts: &'a Facts<'a>,
    id: &'a str,
}

impl<'a> Remains<'a> {
    fn tidy(&self, chores: &mut Chores) {
        let hands_off = self.hands_off();
        if !hands_off.is_empty() {
            chores.warnings.extend(hands_off);
            return;
        }
        let feed = self.give_back();
        if !feed.is_empty() {
            chores.feed.extend(feed);
            return;
        }
        let exchanges = self.exchanges();
        if !exchanges.is_empty() {
            let delete = |name: &String| Topology::DeleteExchange { name: name.clone() };
            chores.remove.extend(exchanges.into_iter().map(delete));
            return;
        }
        for queue in self.queues() {
            let Some(held) = self.facts.held.get(queue) else { continue };
            let (queue, ready) = (queue.clone(), held.ready);
            if ready > 0 {
                chores.warnings.push(Warning::Holds { queue, ready });
            } else if held.empty && !self.is_fed(&queue) {
                chores.remove.push(delete_queue(&queue));
            }
        }
    }

    /// Why nothing of it may be touched.
    fn hands_off(&self) -> Vec<Warning> {
        let Facts { primary, there, held, .. } = *self.facts;
        let used = |queue: &String| {
            let consumers = held.get(queue).map_or(0, |held| held.consumers);
            (consumers > 0).then(|| Warning::InUse { queue: queue.clone(), consumers })
        };
        // After the first hop of two there may be two copies, each on its own.
        let used: Vec<Warning> = self.queues().into_iter().filter_map(used).collect();
        if !used.is_empty() {
            return used;
        }
        let foreign = |link: &&Link| self.is_made(&link.binding.source) && self.is_foreign(link);
        if let Some(link) = self.links().find(foreign) {
            let (exchange, to) = (link.binding.source.clone(), link.to.clone());
            return vec![Warning::Foreign { exchange, to }];
        }
        (!there).then(|| Warning::NoPrimary { primary: primary.to_owned() }).into_iter().collect()
    }

    /// `Q` gets what the gates get: from each gate first, which ends the feed of the queue that stands in for
    /// it in one operation, then from the exchanges themselves; then the gates get nothing more. The second
    /// hop's comes first: the first's messages reach both.
    fn give_back(&self) -> Vec<Topology> {
        let sources: Vec<&Link> = self.links().filter(|link| self.is_feed(link)).collect();
        if sources.is_empty() {
            return Vec::new();
        }
        let queue = self.facts.primary.to_owned();
        let bind = |binding: Binding| Topology::BindQueue { queue: queue.clone(), binding };
        // The second hop's name sorts before the first's.
        let gates = self.exchanges().into_iter().filter(|name| is_gate(name));
        let mut feed: Vec<Topology> = gates.map(|gate| bind(Binding::plain(gate))).collect();
        feed.extend(sources.iter().map(|link| bind(link.binding.clone())));
        feed.extend(sources.iter().map(|link| Topology::UnbindExchange {
            destination: link.to.clone(),
            binding: link.binding.clone(),
        }));
        feed
    }

    fn queues(&self) -> Vec<&'a String> {
        let Facts { primary, found, .. } = *self.facts;
        let ours = |name: &&String| {
            let of = side_queue_of(name).filter(|(of, _)| *of == primary);
            of.is_some_and(|(_, id)| first_hop(id) == self.id)
        };
        found.queues.iter().filter(ours).collect()
    }

    fn exchanges(&self) -> Vec<&'a String> {
        self.facts.found.exchanges.iter().filter(|name| self.is_made(name)).collect()
    }

    fn links(&self) -> impl Iterator<Item = &'a Link> {
        self.facts.found.links.iter()
    }

    /// An exchange of this migration's.
    fn is_made(&self, name: &str) -> bool {
        exchange_of(name).is_some_and(|id| first_hop(id) == self.id)
    }

    /// From elsewhere into this migration's exchanges.
    fn is_feed(&self, link: &Link) -> bool {
        !link.is_queue && self.is_made(&link.to) && !self.is_made(&link.binding.source)
    }

    /// To where no migration of this queue leads.
    fn is_foreign(&self, link: &Link) -> bool {
        if !link.is_queue {
            return !self.is_made(&link.to);
        }
        link.to != self.facts.primary && !self.queues().contains(&&link.to)
    }

    fn is_fed(&self, queue: &str) -> bool {
        self.links().any(|link| link.is_queue && link.to == queue)
    }
}

fn is_gate(exchange: &str) -> bool {
    exchange_of(exchange).is_some_and(|id| Names::gate_of(id) == exchange)
}

#[cfg(test)]
mod tests;
