//! What a copy of the application has applied. It observes; it never deduplicates.

use std::collections::BTreeMap;

use super::Failure;

/// Messages applied, per publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    publishers: BTreeMap<u32, Track>,
    foreign: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Track {
    applied: u64,
    highest: u32,
    duplicated: u64,
    reordered: u64,
    seen: Vec<bool>,
}

/// A ledger compared with what was published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Messages applied, each time counted.
    pub applied: u64,
    /// Published and never applied.
    pub lost: u64,
    /// Applied again.
    pub duplicated: u64,
    /// Applied for the first time after a later one of the same publisher.
    pub reordered: u64,
    /// Applied though no publisher published it.
    pub foreign: u64,
}

impl Ledger {
    /// Applies a message; sequence numbers begin with 1.
    pub fn apply(&mut self, payload: &[u8]) {
        let Some((publisher, sequence)) = parse(payload) else {
            self.foreign += 1;
            return;
        };
        let track = self.publishers.entry(publisher).or_default();
        track.applied += 1;
        let index = sequence as usize;
        if track.seen.len() <= index {
            track.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut track.seen[index], true) {
            track.duplicated += 1;
        } else if sequence < track.highest {
            track.reordered += 1;
        }
        track.highest = track.highest.max(sequence);
    }

    /// How many messages have been applied.
    pub fn applied(&self) -> u64 {
        self.publishers.values().map(|track| track.applied).sum()
    }

    /// Compares with how many messages each publisher has published.
    pub fn verdict(&self, published: &BTreeMap<u32, u64>) -> Verdict {
        let mut verdict = Verdict { foreign: self.foreign, ..Verdict::default() };
        for (publisher, track) in &self.publishers {
            let count = published.get(publisher).copied().unwrap_or_default();
            verdict.applied += track.applied;
            verdict.foreign += track.seen().filter(|sequence| *sequence > count).count() as u64;
            verdict.duplicated += track.duplicated;
            verdict.reordered += track.reordered;
        }
        let none = Track::default();
        for (publisher, &count) in published {
            let track = self.publishers.get(publisher).unwrap_or(&none);
            verdict.lost +=
                count - track.seen().filter(|sequence| *sequence <= count).count() as u64;
        }
        verdict
    }
}

impl Track {
    /// The sequence numbers seen.
    fn seen(&self) -> impl Iterator<Item = u64> {
        (0..).zip(&self.seen).filter_map(|(sequence, seen)| seen.then_some(sequence))
    }
}

impl Verdict {
    /// Fails unless nothing was lost, duplicated or reordered, and nothing came that nobody published.
    pub fn clean(self) -> Result<Self, Failure> {
        let Self { applied, lost, duplicated, reordered, foreign } = self;
        super::ensure(lost + duplicated + reordered + foreign == 0, || {
            format!(
                "of {applied} applied: {lost} lost, {duplicated} duplicated, {reordered} \
                 reordered, {foreign} foreign"
            )
        })?;
        Ok(self)
    }
}

/// A message of `publisher`.
pub fn payload(publisher: u32, sequence: u64) -> Vec<u8> {
    format!("{publisher}:{sequence}").into_bytes()
}

/// Publisher and sequence number; `None` for what no publisher here sends.
fn parse(payload: &[u8]) -> Option<(u32, u32)> {
    let (publisher, sequence) = std::str::from_utf8(payload).ok()?.split_once(':')?;
    let sequence = sequence.parse().ok().filter(|&sequence| sequence > 0)?;
    Some((publisher.parse().ok()?, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        let mut ledger = Ledger::default();
        for sequence in [1, 2, 4, 3, 3, 7] {
            ledger.apply(&payload(1, sequence));
        }
        ledger.apply(&payload(3, 1));
        ledger.apply(b"anything");
        let verdict = ledger.verdict(&BTreeMap::from([(1, 6), (2, 1)]));
        let expected = Verdict { applied: 7, lost: 3, duplicated: 1, reordered: 1, foreign: 3 };
        assert_eq!(verdict, expected);
        assert!(verdict.clean().is_err());
    }
}
