//! What a copy of the application has applied. It observes; it never deduplicates.

use std::collections::BTreeMap;

use super::Failure;

/// Messages applied, per publisher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    publishers: BTreeMap<u32, Track>,
    sentinels: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Track {
    applied: u64,
    highest: u64,
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
    /// Sentinels that reached the application.
    pub sentinels: u64,
}

impl Ledger {
    /// Applies a message; sequence numbers begin with 1.
    pub fn apply(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let (publisher, sequence) = parse(payload)?;
        let track = self.publishers.entry(publisher).or_default();
        track.applied += 1;
        let index = usize::try_from(sequence)?;
        if track.seen.len() <= index {
            track.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut track.seen[index], true) {
            track.duplicated += 1;
        } else if sequence < track.highest {
            track.reordered += 1;
        }
        track.highest = track.highest.max(sequence);
        Ok(())
    }

    /// Notes that a sentinel came.
    pub fn sentinel(&mut self) {
        self.sentinels += 1;
    }

    /// How many messages have been applied.
    pub fn applied(&self) -> u64 {
        self.publishers.values().map(|track| track.applied).sum()
    }

    /// Compares with how many messages each publisher has published.
    pub fn verdict(&self, published: &BTreeMap<u32, u64>) -> Verdict {
        let mut verdict = Verdict { sentinels: self.sentinels, ..Verdict::default() };
        let none = Track::default();
        for (publisher, count) in published {
            let track = self.publishers.get(publisher).unwrap_or(&none);
            verdict.applied += track.applied;
            verdict.lost += count - (track.applied - track.duplicated).min(*count);
            verdict.duplicated += track.duplicated;
            verdict.reordered += track.reordered;
        }
        verdict
    }
}

impl Verdict {
    /// Fails unless nothing was lost, duplicated or reordered and no sentinel seen.
    pub fn clean(self) -> Result<Self, Failure> {
        let Self { applied, lost, duplicated, reordered, sentinels } = self;
        super::ensure(lost + duplicated + reordered + sentinels == 0, || {
            format!(
                "of {applied} applied: {lost} lost, {duplicated} duplicated, {reordered} \
                 reordered, {sentinels} sentinels"
            )
        })?;
        Ok(self)
    }
}

/// A message of `publisher`.
pub fn payload(publisher: u32, sequence: u64) -> Vec<u8> {
    format!("{publisher}:{sequence}").into_bytes()
}

fn parse(payload: &[u8]) -> Result<(u32, u64), Failure> {
    let text = std::str::from_utf8(payload)?;
    let (publisher, sequence) =
        text.split_once(':').ok_or_else(|| Failure(format!("not a message of ours: {text:?}")))?;
    Ok((publisher.parse()?, sequence.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        let mut ledger = Ledger::default();
        for sequence in [1, 2, 4, 3, 3, 7] {
            ledger.apply(&payload(1, sequence)).unwrap();
        }
        let verdict = ledger.verdict(&BTreeMap::from([(1, 7), (2, 1)]));
        let expected = Verdict { applied: 6, lost: 3, duplicated: 1, reordered: 1, sentinels: 0 };
        assert_eq!(verdict, expected);
        assert!(verdict.clean().is_err());
    }
}
