//! What an agent knows of the transfers that go on.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shadow_checkpoint::agent::wire::{Arrived, Expected, Origin, Sender};
use shadow_checkpoint::oci::Documents;
use shadow_checkpoint::registry::Blob;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::answer::No;
use crate::staging::Archive;

/// A checkpoint that the node's runtime may have.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The archive.
    pub archive: Arc<Archive>,
    /// The archive as a layer.
    pub layer: Blob,
    /// The image around it.
    pub documents: Documents,
    /// What was answered.
    pub arrived: Arrived,
}

/// What comes of an order that takes its time.
pub(crate) type Outcome = watch::Receiver<Option<Result<Arrived, No>>>;

struct Task {
    order: String,
    outcome: Outcome,
    handle: AbortHandle,
}

impl Task {
    /// Nothing came of it so far; of one that crashed nothing will.
    fn runs(&self) -> bool {
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Where a transfer's checkpoint comes in. A transfer that is forgotten and known again has another.
#[derive(Clone)]
pub(crate) struct Entrance {
    /// One upload at a time.
    pub door: Arc<tokio::sync::Mutex<()>>,
    known: watch::Receiver<()>,
}

impl Entrance {
    /// Resolves when the transfer is forgotten.
    pub(crate) async fn closed(&self) {
        let mut known = self.known.clone();
        while known.changed().await.is_ok() {}
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
    door: Arc<tokio::sync::Mutex<()>>,
    /// Goes with this.
    known: watch::Sender<()>,
    touched: Option<Instant>,
}

impl Transfer {
    fn entrance(&self) -> Entrance {
        Entrance { door: self.door.clone(), known: self.known.subscribe() }
    }

    fn is_busy(&self) -> bool {
        self.task.as_ref().is_some_and(Task::runs) || self.door.try_lock().is_err()
    }
}

/// All of them. What is forgotten is removed from the disk, too.
#[derive(Default)]
pub(crate) struct Store {
    transfers: Mutex<HashMap<String, Transfer>>,
    numbers: AtomicU64,
}

impl Store {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Transfer>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the name of a file: a transfer that is forgotten and known again must not find the old one.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn with<T>(&self, transfer: &str, change: impl FnOnce(&mut Transfer) -> T) -> T {
        let mut all = self.all();
        let found = all.entry(transfer.to_owned()).or_default();
        found.touched = Some(Instant::now());
        change(found)
    }

    /// A checkpoint may come. With another origin it is another transfer.
    pub(crate) fn expect(&self, transfer: &str, expected: Expected) {
        self.with(transfer, |it| {
            if it.expected.iter().any(|before| before.origin != expected.origin) {
                *it = Transfer { touched: it.touched, ..Transfer::default() };
            }
            it.expected.retain(|before| *before != expected);
            it.expected.push(expected);
            let spare = it.expected.len().saturating_sub(SENDERS);
            it.expected.drain(..spare);
        });
    }

    /// What is expected from one whom `is` knows, and where it comes in.
    pub(crate) fn expected(
        &self,
        transfer: &str,
        is: impl Fn(&Sender) -> bool,
    ) -> Option<(Origin, Entrance)> {
        let all = self.all();
        let found = all.get(transfer)?;
        let expected = found.expected.iter().find(|expected| is(&expected.sender))?;
        Some((expected.origin.clone(), found.entrance()))
    }

    /// From now on the runtime may have what has come in through `entrance`; unless nobody wants it any
    /// more.
    pub(crate) fn offer(&self, transfer: &str, offer: Offer, entrance: &Entrance) -> Option<()> {
        let mut all = self.all();
        let found = all.get_mut(transfer).filter(|it| Arc::ptr_eq(&it.door, &entrance.door))?;
        found.touched = Some(Instant::now());
        found.offer = Some(Arc::new(offer));
        Some(())
    }

    /// What the runtime may have.
    pub(crate) fn offered(&self, transfer: &str) -> Option<Arc<Offer>> {
        let mut all = self.all();
        let found = all.get_mut(transfer)?;
        found.touched = Some(Instant::now());
        found.offer.clone()
    }

    /// The task that carries out `order`: begun by `begin`, unless it runs. One that has ended is begun
    /// again: the other side may have lost meanwhile what was brought to it, and if not says so at once.
    pub(crate) fn task(
        &self,
        transfer: &str,
        order: &str,
        begin: impl FnOnce(Entrance) -> (AbortHandle, Outcome),
    ) -> Outcome {
        self.with(transfer, |it| {
            let going_on = |task: &Task| task.order == order && task.runs();
            if let Some(task) = it.task.as_ref().filter(|task| going_on(task)) {
                return task.outcome.clone();
            }
            let (handle, outcome) = begin(it.entrance());
            it.task = Some(Task { order: order.to_owned(), outcome: outcome.clone(), handle });
            outcome
        })
    }

    /// It is over: whatever runs is stopped, whatever was staged is removed.
    pub(crate) fn forget(&self, transfer: &str) {
        let found = self.all().remove(transfer);
        drop(found);
    }

    /// Forgets those that nobody has touched for `age`, and names them. What comes in or goes out takes
    /// as long as it takes; it has its own deadlines.
    pub(crate) fn forget_older(&self, age: Duration) -> Vec<String> {
        let mut all = self.all();
        let old: Vec<String> = all
            .iter()
            .filter(|(_, it)| it.touched.is_none_or(|touched| touched.elapsed() > age))
            .filter(|(_, it)| !it.is_busy())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &old {
            all.remove(name);
        }
        old
    }
}

/// Removes every file in `folder`: what an agent that ended has left.
pub(crate) fn empty(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // What a link refers to is not ours.
        if !entry.file_type()?.is_dir() {
            std::fs::remove_file(entry.path())?;
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

#[cfg(test)]
mod tests {
    use shadow_checkpoint::archive::Facts;
    use shadow_checkpoint::image;

    use super::*;

    fn offer(folder: &Path) -> Offer {
        let (archive, writer) = Archive::create(folder.join("a.tar"), false).unwrap();
        writer.end().unwrap();
        let layer = Blob { digest: "sha256:00".to_owned(), size: 0 };
        let documents = image::documents("app", &Facts::default(), &layer);
        let arrived = Arrived {
            image: String::new(),
            digest: documents.digest(),
            bytes: 0,
            base_image: String::new(),
            seconds: 0.0,
        };
        Offer { archive: Arc::new(archive), layer, documents, arrived }
    }

    /// Begins an order that never ends by itself; the entrance that it was given.
    fn begin(store: &Store, transfer: &str) -> Entrance {
        let mut given = None;
        store.task(transfer, "load", |entrance| {
            given = Some(entrance);
            (tokio::spawn(std::future::pending::<()>()).abort_handle(), watch::channel(None).1)
        });
        given.unwrap()
    }

    /// In the moment in which an order ends nothing stops it any more.
    #[tokio::test]
    async fn what_is_forgotten_is_not_known_again_by_an_order_that_ends() {
        let (store, folder) = (Store::default(), tempfile::tempdir().unwrap());
        let entrance = begin(&store, "a");
        store.forget("a");
        assert_eq!(store.offer("a", offer(folder.path()), &entrance), None);
        assert!(store.all().is_empty(), "nothing is left for an hour");
        // Nor is it taken for what is loaded anew.
        let anew = begin(&store, "a");
        assert_eq!(store.offer("a", offer(folder.path()), &entrance), None);
        assert!(store.offered("a").is_none());
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        assert_eq!(store.offer("a", offer(folder.path()), &anew), Some(()));
        assert!(store.offered("a").is_some());
    }
}
