//! Whose turn it is. Pure: the same migrations and limits give the same answer.
//!
//! Each migration gets a *round* in its namespace when it is asked for; rounds are dealt one after the other,
//! and within one the oldest comes first: that is round robin between namespaces. Whoever's nodes are full is
//! passed by. That nobody starves, where two nodes are never free at the same time for one that needs both:
//! who is the next for its full nodes, and has been overtaken at one of them, keeps what is free of them.

use std::collections::{BTreeMap, BTreeSet};

/// How many migrations may go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In the whole cluster.
    pub at_once: u32,
    /// From one node.
    pub from_node: u32,
    /// To one node.
    pub to_node: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { at_once: 10, from_node: 2, to_node: 2 }
    }
}

/// What one migration at a time may have; names include the namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A pod.
    Pod(String),
    /// A queue, and its broker.
    Queue(String, String),
    /// A StatefulSet.
    StatefulSet(String),
    /// A Deployment: several migrations may have it, unless one of them pins it.
    Deployment(String),
}

/// Whether a claim admits no other of the same thing.
pub type Alone = bool;

/// A migration that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its UID.
    pub uid: String,
    /// `<namespace>/<name>`.
    pub name: String,
    /// Its round: see [`Rounds`].
    pub round: u64,
    /// When it was asked for, in seconds.
    pub created: i64,
    /// The source's node, if it is known.
    pub from: Option<String>,
    /// The node that it goes to; before it is chosen: those that come into question, best first.
    pub to: Vec<String>,
    /// What it needs for itself.
    pub claims: BTreeMap<Claim, Alone>,
    /// It goes on already.
    pub running: bool,
}

impl Entry {
    /// Who comes first.
    fn rank(&self) -> (u64, i64, &str, &str) {
        (self.round, self.created, &self.name, &self.uid)
    }

    fn goes_to(&self) -> Option<&str> {
        match self.to.as_slice() {
            [only] if self.running => Some(only),
            _ => None,
        }
    }
}

/// What becomes of one that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may go on, to this node if there is a choice.
    Go(Option<String>),
    /// It waits; the sentence says for what.
    Wait(String),
}

/// Says of everyone that waits whether it may go on.
pub fn deal(entries: &[Entry], limits: Limits) -> BTreeMap<String, Answer> {
    let mut all: Vec<&Entry> = entries.iter().collect();
    all.sort_by_key(|entry| entry.rank());
    let (running, waiting): (Vec<&Entry>, Vec<&Entry>) =
        all.into_iter().partition(|entry| entry.running);
    let mut table = Table::new(limits, running);
    waiting.into_iter().map(|entry| (entry.uid.clone(), table.ask(entry))).collect()
}

/// Which way a node is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    From,
    To,
}

type At<'a> = (Way, &'a str);

/// What is taken as far as it has been dealt.
struct Table<'a> {
    limits: Limits,
    running: Vec<&'a Entry>,
    going: u32,
    /// Who goes on there.
    nodes: BTreeMap<At<'a>, Vec<&'a str>>,
    /// Who keeps room there.
    kept: BTreeMap<At<'a>, Vec<&'a str>>,
    /// Somebody waits for room there.
    awaited: BTreeSet<At<'a>>,
    claims: BTreeMap<&'a Claim, Vec<(&'a Entry, Alone)>>,
}

impl<'a> Table<'a> {
    fn new(limits: Limits, running: Vec<&'a Entry>) -> Self {
        let mut table = Self {
            limits,
            running: Vec::new(),
            going: 0,
            nodes: BTreeMap::new(),
            kept: BTreeMap::new(),
            awaited: BTreeSet::new(),
            claims: BTreeMap::new(),
        };
        for entry in &running {
            table.claim(entry);
            table.go(entry, entry.goes_to());
        }
        Self { running, ..table }
    }

    fn ask(&mut self, entry: &'a Entry) -> Answer {
        let rival = self.rival(entry);
        self.claim(entry);
        if let Some(why) = rival {
            return Answer::Wait(why);
        }
        let from = entry.from.as_deref().map(|node| (Way::From, node));
        let open = |table: &Self, at: &At<'_>| table.used(*at) < table.limit(at.0);
        let from_open = from.is_none_or(|at| open(self, &at));
        let mut candidates = entry.to.iter().map(|node| (Way::To, node.as_str()));
        let to = candidates.clone().find(|at| open(self, at));
        if !from_open || to.is_none() && !entry.to.is_empty() {
            let full: Vec<At<'a>> = match from.filter(|_| !from_open) {
                Some(at) if to.is_some() => vec![at],
                at => at.into_iter().chain(&mut candidates).collect(),
            };
            let why = self.full(&full, entry.to.len());
            self.keep(entry, &full, from.filter(|_| from_open).into_iter().chain(to));
            return Answer::Wait(why);
        }
        if self.going >= self.limits.at_once {
            let at_once = self.limits.at_once;
            return Answer::Wait(format!("{}, at most {at_once} at once", go_on(self.going, "")));
        }
        let to = to.map(|(_, node)| node);
        self.go(entry, to);
        Answer::Go(to.map(str::to_owned))
    }

    fn go(&mut self, entry: &'a Entry, to: Option<&'a str>) {
        self.going += 1;
        let from = entry.from.as_deref().map(|node| (Way::From, node));
        for at in from.into_iter().chain(to.map(|node| (Way::To, node))) {
            self.nodes.entry(at).or_default().push(&entry.name);
        }
    }

    fn claim(&mut self, entry: &'a Entry) {
        for (claim, alone) in &entry.claims {
            self.claims.entry(claim).or_default().push((entry, *alone));
        }
    }

    /// Who has what `entry` needs, or comes first for it.
    fn rival(&self, entry: &Entry) -> Option<String> {
        let rivals = entry.claims.iter().flat_map(|(claim, alone)| {
            let holders = self.claims.get(claim).into_iter().flatten();
            holders.filter(move |(_, theirs)| *alone || *theirs).map(move |(it, _)| (claim, *it))
        });
        // Who goes on is told before who only waits, too.
        let (claim, first) = rivals.min_by_key(|(_, it)| !it.running)?;
        let what = match claim {
            Claim::Pod(_) => "the same pod".to_owned(),
            Claim::Queue(queue, _) => format!("a pod of the same queue {queue}"),
            Claim::StatefulSet(name) => format!("a pod of the same StatefulSet {name}"),
            Claim::Deployment(name) => format!("a pod of the same Deployment {name}"),
        };
        let name = &first.name;
        let moves = if first.running { "moves" } else { "comes first and moves" };
        Some(format!("migration {name} {moves} {what}"))
    }

    fn limit(&self, way: Way) -> usize {
        let limit = match way {
            Way::From => self.limits.from_node,
            Way::To => self.limits.to_node,
        };
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    fn used(&self, at: At<'_>) -> usize {
        let count = |it: &BTreeMap<At<'_>, Vec<&str>>| it.get(&at).map_or(0, Vec::len);
        count(&self.nodes) + count(&self.kept)
    }

    /// Keeps for `entry` what is `free` of its nodes, if it has waited long enough for the `full` ones.
    fn keep(&mut self, entry: &'a Entry, full: &[At<'a>], free: impl Iterator<Item = At<'a>>) {
        let next = full.iter().all(|at| !self.awaited.contains(at));
        let overtaken = self.running.iter().any(|it| {
            let same_from = it.from.is_some() && it.from == entry.from;
            let same_to = it.goes_to().is_some_and(|to| entry.to.iter().any(|node| node == to));
            it.rank() > entry.rank() && (same_from || same_to)
        });
        if next && overtaken {
            for at in free {
                self.kept.entry(at).or_default().push(&entry.name);
            }
        }
        self.awaited.extend(full);
    }

    /// The sentence about nodes without room, of which the first is the one to be told.
    fn full(&self, full: &[At<'_>], choice: usize) -> String {
        let Some(&(way, node)) = full.first() else { return String::new() };
        let limit = self.limit(way);
        if way == Way::To && choice > 1 {
            let nodes: Vec<&str> = full.iter().map(|(_, node)| *node).collect();
            let nodes = list(&nodes);
            return format!(
                "no node that takes the pod has room, at most {limit} at once: {nodes}"
            );
        }
        let where_to = match way {
            Way::From => format!(" from node {node}"),
            Way::To => format!(" to node {node}"),
        };
        let names = |it: &BTreeMap<At<'_>, Vec<&str>>| {
            it.get(&(way, node)).map(|names| (names.len(), list(names)))
        };
        let going = names(&self.nodes).map(|(count, names)| {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            format!("{}, at most {limit} at once: {names}", go_on(count, &where_to))
        });
        let kept = names(&self.kept).map(|(_, names)| format!("next{where_to}: {names}"));
        going.into_iter().chain(kept).collect::<Vec<_>>().join("; ")
    }
}

fn go_on(count: u32, where_to: &str) -> String {
    match count {
        1 => format!("1 migration{where_to} goes on"),
        _ => format!("{count} migrations{where_to} go on"),
    }
}

/// The first few of them.
fn list(names: &[&str]) -> String {
    const TOLD: usize = 5;
    let told = names.iter().take(TOLD).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(TOLD) {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

/// The rounds that have been given out, by namespace.
#[derive(Debug, Default)]
pub struct Rounds(BTreeMap<String, u64>);

impl Rounds {
    /// The round of one that is new in `namespace`, while others with the rounds `waiting` wait: after its
    /// namespace's last, but no namespace is ahead because it had nothing to ask for.
    pub fn next(&mut self, namespace: &str, waiting: impl Iterator<Item = u64>) -> u64 {
        let Some(first) = waiting.min() else {
            self.0.clear();
            self.0.insert(namespace.to_owned(), 1);
            return 1;
        };
        let last = self.0.get(namespace).copied().unwrap_or_default();
        let round = first.max(last.saturating_add(1));
        self.0.insert(namespace.to_owned(), round);
        round
    }
}
