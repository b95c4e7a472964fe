//! What an agent knows of the transfers that go on.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shadow_checkpoint::agent::wire::{Arrived, Expected, Origin, Sender};
use shadow_checkpoint::oci::Documents;
use shadow_checkpoint::registry::Blob;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::answer::No;

/// A checkpoint that the node's runtime may have.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The archive.
    pub file: PathBuf,
    /// It was written here, and goes with the offer.
    pub staged: bool,
    /// The archive as a layer.
    pub layer: Blob,
    /// The image around it.
    pub documents: Documents,
    /// What was answered.
    pub arrived: Arrived,
}

impl Drop for Offer {
    /// Who still reads it has it open.
    fn drop(&mut self) {
        if self.staged {
            remove(&self.file);
        }
    }
}

/// What comes of an order that takes its time.
pub(crate) type Outcome = watch::Receiver<Option<Result<Arrived, No>>>;

struct Task {
    order: String,
    outcome: Outcome,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// An operator that begins anew makes a new token, and the old one may be on its way.
const SENDERS: usize = 4;

#[derive(Default)]
struct Transfer {
    /// What may come, and from whom: the latest last.
    expected: Vec<Expected>,
    offer: Option<Arc<Offer>>,
    task: Option<Task>,
    /// One upload at a time.
    entrance: Arc<tokio::sync::Mutex<()>>,
    touched: Option<Instant>,
}

/// All of them. What is forgotten is removed from the disk, too.
#[derive(Default)]
pub(crate) struct Store(Mutex<HashMap<String, Transfer>>);

impl Store {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Transfer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, transfer: &str, change: impl FnOnce(&mut Transfer) -> T) -> T {
        let mut all = self.all();
        let found = all.entry(transfer.to_owned()).or_default();
        found.touched = Some(Instant::now());
        change(found)
    }

    /// A checkpoint may come.
    pub(crate) fn expect(&self, transfer: &str, expected: Expected) {
        self.with(transfer, |it| {
            it.expected.retain(|other| other.origin == expected.origin && *other != expected);
            it.expected.push(expected);
            let spare = it.expected.len().saturating_sub(SENDERS);
            it.expected.drain(..spare);
        });
    }

    /// Of what a checkpoint is expected from one whom `is` knows, and the door through which it comes.
    pub(crate) fn expected(
        &self,
        transfer: &str,
        is: impl Fn(&Sender) -> bool,
    ) -> Option<(Origin, Arc<tokio::sync::Mutex<()>>)> {
        let all = self.all();
        let found = all.get(transfer)?;
        let expected = found.expected.iter().find(|expected| is(&expected.sender))?;
        Some((expected.origin.clone(), found.entrance.clone()))
    }

    /// From now on the runtime may have it; unless nobody wants it any more.
    pub(crate) fn offer(&self, transfer: &str, offer: Offer, wanted: bool) -> Option<Arc<Offer>> {
        let mut all = self.all();
        if wanted && all.get(transfer).is_none_or(|it| it.expected.is_empty()) {
            return None;
        }
        let found = all.entry(transfer.to_owned()).or_default();
        found.touched = Some(Instant::now());
        Some(found.offer.insert(Arc::new(offer)).clone())
    }

    /// What the runtime may have.
    pub(crate) fn offered(&self, transfer: &str) -> Option<Arc<Offer>> {
        let mut all = self.all();
        let found = all.get_mut(transfer)?;
        found.touched = Some(Instant::now());
        found.offer.clone()
    }

    /// The task that carries out `order`: begun by `begin`, unless it has been. An order that succeeded,
    /// or still runs, is not carried out twice.
    pub(crate) fn task(
        &self,
        transfer: &str,
        order: &str,
        begin: impl FnOnce() -> (AbortHandle, Outcome),
    ) -> Outcome {
        self.with(transfer, |it| {
            let going_on = |task: &Task| {
                let failed = matches!(*task.outcome.borrow(), Some(Err(_)));
                task.order == order && !failed
            };
            if let Some(task) = it.task.as_ref().filter(|task| going_on(task)) {
                return task.outcome.clone();
            }
            let (handle, outcome) = begin();
            it.task = Some(Task { order: order.to_owned(), outcome: outcome.clone(), handle });
            outcome
        })
    }

    /// It is over: whatever runs is stopped, whatever was staged is removed.
    pub(crate) fn forget(&self, transfer: &str) {
        let found = self.all().remove(transfer);
        drop(found);
    }

    /// Forgets those that nobody has touched for `age`, and names them.
    pub(crate) fn forget_older(&self, age: Duration) -> Vec<String> {
        let mut all = self.all();
        let old: Vec<String> = all
            .iter()
            .filter(|(_, it)| it.touched.is_none_or(|touched| touched.elapsed() > age))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &old {
            all.remove(name);
        }
        old
    }
}

/// Removes everything in `folder`: what an agent that ended has left.
pub(crate) fn empty(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Removes a file that may be gone.
pub(crate) fn remove(file: &Path) {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %file.display(), %error, "can't remove");
        }
        _ => {}
    }
}
