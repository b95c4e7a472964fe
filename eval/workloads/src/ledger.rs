//! The ledger: what was applied to this process' memory, in which order, and how late.
//!
//! It observes and never deduplicates: what reaches it is applied. Each publisher numbers its
//! messages from 1, so the ledger alone can tell what is missing, what came twice and what came
//! out of order. `consumer.py` implements the same rules.

mod ages;
mod intervals;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::clock::Moment;
use crate::message::Message;
use ages::Ages;
use intervals::Intervals;

/// Everything applied so far.
#[derive(Debug)]
pub struct Ledger {
    publishers: BTreeMap<String, Publisher>,
    applied_total: u64,
    last_age_ms: u64,
    window: Window,
}

#[derive(Debug, Default)]
struct Publisher {
    counts: Counts,
    highest: u64,
    hash: RunningHash,
    seen: Intervals,
    originals: Intervals,
    republications: BTreeSet<(u64, u32)>,
}

/// What a publisher's messages did; also the sum over all publishers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Applications, duplicates included.
    pub applied: u64,
    /// Applications of a message that had been applied before.
    pub duplicated: u64,
    /// Sequence numbers below the highest that were never applied.
    pub gaps: u64,
    /// First applications below the highest number applied before.
    pub inversions: u64,
    /// Deliveries that the broker flagged as redelivered.
    pub redelivered: u64,
    /// Those of them that are in `duplicated`: it had been applied, and the broker has not heard of it.
    pub redelivered_duplicates: u64,
    /// Applications of messages that the producer had sent again.
    pub republished: u64,
    /// Those of them whose original (or other republication) had been applied: the producer's
    /// doing, hence not in `duplicated`.
    pub republished_duplicates: u64,
}

/// One publisher as the ledger reports it.
#[derive(Debug, Serialize)]
pub struct PublisherReport {
    #[serde(flatten)]
    counts: Counts,
    highest: u64,
    /// Depends on every sequence number applied and on their order: two copies with the same
    /// value have the same history.
    hash: String,
}

/// The ledger as JSON shows it.
#[derive(Debug, Serialize)]
pub struct Report {
    applied_total: u64,
    last_age_ms: u64,
    totals: Counts,
    publishers: BTreeMap<String, PublisherReport>,
    window: WindowReport,
}

impl Ledger {
    /// An empty ledger whose window begins now.
    pub fn new(now: Moment) -> Self {
        Self {
            publishers: BTreeMap::new(),
            applied_total: 0,
            last_age_ms: 0,
            window: Window::new(now),
        }
    }

    /// Writes down that `message` has been applied.
    pub fn apply(&mut self, message: &Message, redelivered: bool, now: Moment) {
        self.applied_total += 1;
        self.last_age_ms = now.unix_ms.saturating_sub(message.published_at);
        self.window.apply(message.published_at, now);
        if !self.publishers.contains_key(&message.publisher) {
            self.publishers.insert(message.publisher.clone(), Publisher::default());
        }
        if let Some(publisher) = self.publishers.get_mut(&message.publisher) {
            publisher.apply(message.seq, message.republication, redelivered);
        }
    }

    /// Begins a new window: ages, gap and pause are measured afresh, counts go on.
    pub fn reset_window(&mut self, now: Moment) {
        self.window = Window::new(now);
    }

    /// The ledger for the reader.
    pub fn report(&self) -> Report {
        let mut totals = Counts::default();
        let publishers = self.publishers.iter().map(|(id, publisher)| {
            let counts = publisher.counts();
            totals.add(counts);
            let hash = format!("{:016x}", publisher.hash.0);
            (id.clone(), PublisherReport { counts, highest: publisher.highest, hash })
        });
        let publishers = publishers.collect();
        Report {
            applied_total: self.applied_total,
            last_age_ms: self.last_age_ms,
            totals,
            publishers,
            window: self.window.report(),
        }
    }
}

impl Publisher {
    fn apply(&mut self, seq: u64, republication: u32, redelivered: bool) {
        let new_on_wire = if republication == 0 {
            self.originals.insert(seq)
        } else {
            self.republications.insert((seq, republication))
        };
        let new = self.seen.insert(seq);
        let counts = &mut self.counts;
        counts.applied += 1;
        counts.redelivered += u64::from(redelivered);
        counts.republished += u64::from(republication > 0);
        counts.duplicated += u64::from(!new_on_wire);
        counts.redelivered_duplicates += u64::from(!new_on_wire && redelivered);
        counts.republished_duplicates += u64::from(new_on_wire && !new);
        counts.inversions += u64::from(new && seq < self.highest);
        self.highest = self.highest.max(seq);
        self.hash.add(seq);
    }

    fn counts(&self) -> Counts {
        Counts { gaps: self.highest - self.seen.len(), ..self.counts }
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        // Without `..`, so that a new field cannot be forgotten here.
        let Self {
            applied,
            duplicated,
            gaps,
            inversions,
            redelivered,
            redelivered_duplicates,
            republished,
            republished_duplicates,
        } = other;
        self.applied += applied;
        self.duplicated += duplicated;
        self.gaps += gaps;
        self.inversions += inversions;
        self.redelivered += redelivered;
        self.redelivered_duplicates += redelivered_duplicates;
        self.republished += republished;
        self.republished_duplicates += republished_duplicates;
    }
}

/// FNV-1a over the sequence numbers' little-endian bytes.
#[derive(Debug)]
struct RunningHash(u64);

impl Default for RunningHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl RunningHash {
    fn add(&mut self, seq: u64) {
        for byte in seq.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// What is measured since the last reset.
#[derive(Debug)]
struct Window {
    began: Moment,
    applied: u64,
    last_applied: Moment,
    ages: Ages,
    gap: Gap,
    pause: Pause,
}

/// The longest time between two applications, by the wall clock.
#[derive(Debug, Default)]
struct Gap {
    ms: u64,
    mono_ms: u64,
    began: Moment,
}

/// The longest time in which a message waited and none was applied.
#[derive(Debug, Default)]
struct Pause {
    ms: u64,
    began_unix_ms: u64,
}

/// The window as JSON shows it. A gap or pause of 0 ms has no beginning (0).
#[derive(Debug, Serialize)]
pub struct WindowReport {
    began_unix_ms: u64,
    applied: u64,
    max_age_ms: u64,
    p99_age_ms: u64,
    longest_gap_ms: u64,
    longest_gap_began_unix_ms: u64,
    longest_gap_monotonic_ms: u64,
    longest_gap_began_monotonic_ms: u64,
    pause_ms: u64,
    pause_began_unix_ms: u64,
}

impl Window {
    fn new(now: Moment) -> Self {
        Self {
            began: now,
            applied: 0,
            last_applied: now,
            ages: Ages::default(),
            gap: Gap::default(),
            pause: Pause::default(),
        }
    }

    fn apply(&mut self, published_at: u64, now: Moment) {
        let last = self.last_applied;
        let gap_ms = now.unix_ms.saturating_sub(last.unix_ms);
        if gap_ms > self.gap.ms {
            let mono_ms = now.mono_ms.saturating_sub(last.mono_ms);
            self.gap = Gap { ms: gap_ms, mono_ms, began: last };
        }
        // This message waited since it was published, or since the application before it.
        let began_unix_ms = published_at.max(last.unix_ms);
        let pause_ms = now.unix_ms.saturating_sub(began_unix_ms);
        if pause_ms > self.pause.ms {
            self.pause = Pause { ms: pause_ms, began_unix_ms };
        }
        self.ages.record(now.unix_ms.saturating_sub(published_at));
        self.applied += 1;
        self.last_applied = now;
    }

    fn report(&self) -> WindowReport {
        WindowReport {
            began_unix_ms: self.began.unix_ms,
            applied: self.applied,
            max_age_ms: self.ages.max(),
            p99_age_ms: self.ages.percentile(99),
            longest_gap_ms: self.gap.ms,
            longest_gap_began_unix_ms: self.gap.began.unix_ms,
            longest_gap_monotonic_ms: self.gap.mono_ms,
            longest_gap_began_monotonic_ms: self.gap.began.mono_ms,
            pause_ms: self.pause.ms,
            pause_began_unix_ms: self.pause.began_unix_ms,
        }
    }
}

#[cfg(test)]
mod tests;
