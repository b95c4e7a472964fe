//! What this process knows of migrations that the API server may know no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt as _;
use shadow_api::StatefulMigration;
use shadow_broker::Target;
use shadow_protocol::pending::{Called, target_name};

/// A queue that has been moved, or is to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Known {
    /// Its broker.
    pub target: Target,
    /// Its name.
    pub queue: String,
    /// The pods that a migration of it has to do with.
    pub pods: BTreeSet<String>,
}

impl Known {
    /// What `migration` says; nothing, if it is of no queue.
    pub fn by(migration: &StatefulMigration, target: Target) -> Option<Self> {
        let queue = queue(migration)?.to_owned();
        let source = &migration.spec.source_pod;
        let status = migration.status.as_ref();
        let target_pod = status.and_then(|status| status.target_pod.clone());
        let mut pods = BTreeSet::from([source.clone(), target_name(Called::plainly(source))]);
        pods.extend(target_pod);
        Some(Self { target, queue, pods })
    }
}

/// The queue that a migration is of.
pub fn queue(migration: &StatefulMigration) -> Option<&str> {
    let config = migration.spec.message_queue_config.as_ref();
    config.map(|config| config.queue_name.as_str())
}

/// As long as the process lives.
#[derive(Default)]
pub struct Ledger(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    /// The queues of the migrations that a task works on, by their UIDs.
    running: BTreeMap<String, Option<String>>,
    known: Vec<Known>,
}

/// A migration that a task works on, until this is dropped.
pub struct Entry {
    ledger: Arc<Ledger>,
    uid: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.pages().running.remove(&self.uid);
    }
}

impl Ledger {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Nothing panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task begins to work on `migration`.
    pub fn enter(self: &Arc<Self>, migration: &StatefulMigration) -> Entry {
        let uid = migration.uid().unwrap_or_default();
        self.pages().running.insert(uid.clone(), queue(migration).map(str::to_owned));
        Entry { ledger: self.clone(), uid }
    }

    /// The queues of the migrations under work, by UID.
    pub fn running(&self) -> BTreeMap<String, Option<String>> {
        self.pages().running.clone()
    }

    /// Keeps a queue in mind.
    pub fn remember(&self, known: Known) {
        let mut pages = self.pages();
        let same = |it: &&mut Known| it.target == known.target && it.queue == known.queue;
        match pages.known.iter_mut().find(same) {
            Some(there) => there.pods.extend(known.pods),
            None => pages.known.push(known),
        }
    }

    /// All that was remembered.
    pub fn known(&self) -> Vec<Known> {
        self.pages().known.clone()
    }
}
