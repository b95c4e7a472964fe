//! Messages, counted in runs.

use std::collections::BTreeMap;

/// What a message says. Messages that follow from one another make a run, of which only the first
/// is stored.
pub trait Content: Clone {
    /// The message that comes `by` places after this one in a run; only asked for `by` less than
    /// the run's length.
    #[must_use]
    fn later(&self, by: u64) -> Self;

    /// Whether `next` is the message `by` places after this one.
    fn continues(&self, by: u64, next: &Self) -> bool;
}

/// A message as oracles want it: whose, and the how manieth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial {
    /// The publisher.
    pub publisher: u32,
    /// Its sequence number.
    pub sequence: u64,
}

impl Content for Serial {
    fn later(&self, by: u64) -> Self {
        Self { sequence: self.sequence + by, ..*self }
    }

    fn continues(&self, by: u64, next: &Self) -> bool {
        self.later(by) == *next
    }
}

/// Messages in a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Run<M> {
    pub(super) first: M,
    pub(super) count: u64,
    /// How often it was delivered and came back.
    pub(super) returns: u32,
}

impl<M: Content> Run<M> {
    /// Keeps the first `at` messages, gives the others; `at` is within the run.
    pub(super) fn split_off(&mut self, at: u64) -> Self {
        let rest = Self { first: self.first.later(at), count: self.count - at, ..*self };
        self.count = at;
        rest
    }

    fn goes_on_with(&self, next: &Self) -> bool {
        self.returns == next.returns && self.first.continues(self.count, &next.first)
    }
}

/// Ready messages by position. Neighbours that make one run are one, so that equal contents are
/// equal however they came about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ready<M> {
    runs: BTreeMap<u64, Run<M>>,
    count: u64,
}

impl<M> Default for Ready<M> {
    fn default() -> Self {
        Self { runs: BTreeMap::new(), count: 0 }
    }
}

impl<M> Ready<M> {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &Run<M>> {
        self.runs.values()
    }
}

impl<M: Content> Ready<M> {
    /// Puts `run` where it belongs; nothing else is at its positions.
    pub(super) fn insert(&mut self, mut position: u64, mut run: Run<M>) {
        self.count += run.count;
        if let Some((&at, before)) = self.runs.range_mut(..position).next_back()
            && at + before.count == position
            && before.goes_on_with(&run)
        {
            run.first = before.first.clone();
            run.count += before.count;
            position = at;
        }
        let end = position + run.count;
        if self.runs.get(&end).is_some_and(|after| run.goes_on_with(after))
            && let Some(after) = self.runs.remove(&end)
        {
            run.count += after.count;
        }
        self.runs.insert(position, run);
    }

    /// Takes messages from the head, at most so many and of one run.
    pub(super) fn pop(&mut self, at_most: u64) -> Option<(u64, Run<M>)> {
        let (position, mut run) = self.runs.pop_first()?;
        if run.count > at_most {
            let rest = run.split_off(at_most);
            self.runs.insert(position + at_most, rest);
        }
        self.count -= run.count;
        Some((position, run))
    }
}
