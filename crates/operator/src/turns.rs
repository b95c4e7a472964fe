//! Whose turn it is: the books of the one that leads.
//!
//! They are built from the objects that the watch shows, so a new leader writes its own. A migration is in them
//! from when it is first seen until its task has let go of everything; `order.rs` decides. Whenever what it
//! decides by changes, the cluster's bell rings, and everyone who waits asks again.

mod facts;
pub mod order;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use shadow_api::StatefulMigration;
use shadow_protocol::observation::{Node, Turn};
use shadow_protocol::pending::fits;
use shadow_protocol::time::Time;

use crate::cluster::Cluster;
use crate::{clock, observe};
use facts::{Facts, Stage};
use order::{Answer, Entry, Limits, Rounds};

/// Who is there, and who goes on.
pub struct Turns {
    cluster: Cluster,
    limits: Limits,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// All that there were when this began are in them.
    listed: bool,
    booked: BTreeMap<String, Booked>,
    rounds: Rounds,
    /// How often the bell had rung when it was last decided.
    decided: Option<u64>,
}

struct Booked {
    facts: Facts,
    /// 0: it went on already when this began.
    round: u64,
    place: Place,
    /// Nodes that were found not to take the pod.
    unfit: BTreeSet<String>,
}

enum Place {
    /// It waits, and why.
    Out(String),
    /// It has been let in, with a node kept for it if it may choose.
    In(Time, Option<String>),
}

impl Booked {
    fn goes_on(&self) -> bool {
        self.facts.stage == Stage::Running || matches!(self.place, Place::In(..))
    }

    fn waits(&self) -> bool {
        self.facts.stage == Stage::Pending && !self.goes_on()
    }

    fn entry(&self, cluster: &Cluster, choice: &[String]) -> Entry {
        self.facts.entry(cluster, self.round, &self.place, choice, &self.unfit)
    }
}

impl Books {
    fn enter(&mut self, uid: &str, facts: Facts) {
        let round = if self.listed { self.round(&facts) } else { 0 };
        let place = Place::Out("the operator has not looked at it yet".to_owned());
        let booked = Booked { facts, round, place, unfit: BTreeSet::new() };
        self.booked.insert(uid.to_owned(), booked);
    }

    fn round(&mut self, facts: &Facts) -> u64 {
        let waiting = self.booked.values().filter(|it| it.waits() && it.round > 0);
        self.rounds.next(&facts.namespace, waiting.map(|it| it.round))
    }

    /// Something has changed; says whether anybody waits for that.
    fn changed(&mut self) -> bool {
        self.decided = None;
        self.booked.values().any(Booked::waits)
    }
}

impl Turns {
    /// Nobody is there yet.
    pub fn new(cluster: Cluster, limits: Limits) -> Self {
        Self { cluster, limits, books: Mutex::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics half-way through a change.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the books and wakes who waits, if `change` says that something is different.
    fn change(&self, change: impl FnOnce(&mut Books) -> bool) {
        let mut books = self.books();
        let wake = change(&mut books) && books.changed();
        drop(books);
        if wake {
            self.cluster.ring()();
        }
    }

    /// An object as the watch shows it. Who is over stays until its task has [`Self::left`].
    pub fn seen(&self, object: &StatefulMigration) {
        let (uid, facts) = (object.uid().unwrap_or_default(), Facts::of(object));
        self.change(|books| match books.booked.get_mut(&uid) {
            Some(booked) => std::mem::replace(&mut booked.facts, facts.clone()) != facts,
            None if facts.stage == Stage::Over => false,
            None => {
                books.enter(&uid, facts);
                true
            }
        });
    }

    /// The watch has shown all that there are: only now is it known who goes on.
    pub fn listed(&self) {
        let mut books = self.books();
        if !std::mem::replace(&mut books.listed, true) {
            let waiting = books.booked.iter().filter(|(_, it)| it.waits());
            let mut waiting: Vec<(String, Facts)> =
                waiting.map(|(uid, it)| (uid.clone(), it.facts.clone())).collect();
            waiting.sort_by(|(_, a), (_, b)| a.age().cmp(&b.age()));
            for (uid, facts) in waiting {
                let round = books.round(&facts);
                if let Some(booked) = books.booked.get_mut(&uid) {
                    booked.round = round;
                }
            }
            books.decided = None;
        }
        drop(books);
        self.cluster.ring()();
    }

    /// It has let go of everything.
    pub fn left(&self, uid: &str) {
        self.change(|books| books.booked.remove(uid).is_some());
    }

    /// Whether it is the turn of a migration in phase Pending; absent while nobody can know.
    pub fn ask(&self, object: &StatefulMigration) -> Option<Turn> {
        let rung = self.cluster.rung();
        let uid = object.uid().unwrap_or_default();
        let mut books = self.books();
        if !books.listed {
            return None;
        }
        if !books.booked.contains_key(&uid) {
            books.enter(&uid, Facts::of(object));
            books.decided = None;
        }
        if books.decided != Some(rung) {
            self.decide(&mut books);
            books.decided = Some(rung);
        }
        let booked = books.booked.get(&uid)?;
        Some(match &booked.place {
            Place::In(since, _) => Turn::Since(*since),
            Place::Out(_) if booked.goes_on() => Turn::default(),
            Place::Out(why) => Turn::Waits(why.clone()),
        })
    }

    fn decide(&self, books: &mut Books) {
        let nodes = observe::nodes(&self.cluster, None).into_iter().filter(|node| fits(node, ""));
        let choice: Vec<String> = nodes.map(|node| node.name).collect();
        // Once more after somebody was let in: the others wait for another reason then.
        loop {
            let there = books.booked.values().filter(|it| it.goes_on() || it.waits());
            let entries: Vec<Entry> = there.map(|it| it.entry(&self.cluster, &choice)).collect();
            let mut let_in = false;
            for (uid, answer) in order::deal(&entries, self.limits) {
                let Some(booked) = books.booked.get_mut(&uid) else { continue };
                booked.place = match answer {
                    Answer::Wait(why) => Place::Out(why),
                    Answer::Go(to) => {
                        let_in = true;
                        Place::In(clock::now(), to.filter(|_| booked.facts.may_choose()))
                    }
                };
            }
            if !let_in {
                return;
            }
        }
    }

    /// Keeps one of the `nodes` that take the pod of `uid`, which may choose, and marks the others as full.
    /// Where none has room it gives its turn back.
    pub fn choose(&self, uid: &str, source: &str, nodes: &mut [Node]) {
        if !nodes.iter().any(|node| fits(node, source)) {
            return;
        }
        let mut chosen = None;
        self.change(|books| {
            let limit = usize::try_from(self.limits.to_node).unwrap_or(usize::MAX);
            let others = books.booked.iter().filter(|(other, it)| *other != uid && it.goes_on());
            let others: Vec<String> =
                others.flat_map(|(_, it)| it.entry(&self.cluster, &[]).to).collect();
            let Some(Booked { place, unfit, .. }) = books.booked.get_mut(uid) else { return false };
            let Place::In(_, kept) = place else { return false };
            let mut fit = nodes.iter().filter(|node| fits(node, source)).map(|node| &node.name);
            let room = |node: &&String| others.iter().filter(|other| other == node).count() < limit;
            let stays = kept.as_ref().is_some_and(|kept| fit.clone().any(|node| node == kept));
            if stays {
                chosen.clone_from(kept);
                return false;
            }
            chosen = fit.find(room).cloned();
            kept.clone_from(&chosen);
            if chosen.is_none() {
                let not = nodes.iter().filter(|node| !fits(node, source));
                *unfit = not.map(|node| node.name.clone()).collect();
                *place = Place::Out("room on a node".to_owned());
            }
            true
        });
        for node in nodes.iter_mut().filter(|node| fits(node, source)) {
            node.full = chosen.as_ref() != Some(&node.name);
        }
    }
}

/// A migration's task; its place is free once this is dropped.
pub struct Presence {
    /// The books.
    pub context: std::sync::Arc<crate::migration::Context>,
    /// Its UID.
    pub uid: String,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.context.turns.left(&self.uid);
    }
}
