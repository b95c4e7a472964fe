//! What the probe saw. Pure: the moments are given.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::request::{Answer, Error};
use crate::clock::Moment;

const ERRORS_KEPT: usize = 10;
/// A downtime shorter than this many intervals is the probe's own jitter.
const JITTER_INTERVALS: u64 = 3;

#[derive(Debug)]
pub(super) struct Record {
    interval_ms: u64,
    /// Counts the resets, so that answers to earlier requests are ignored.
    window: u64,
    began: Moment,
    counts: Counts,
    last_answer: Option<Moment>,
    gap: Gap,
    first_errors: VecDeque<Failure>,
    servers: BTreeMap<(String, String), Server>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Counts {
    sent: u64,
    answered: u64,
    failed: u64,
}

#[derive(Clone, Debug, Default)]
struct Gap {
    ms: u64,
    began_unix_ms: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Failure {
    at_unix_ms: u64,
    error: String,
}

/// One copy of the consumer: a restored one has the boot id of its source and a name of its own.
#[derive(Clone, Debug, Serialize)]
struct Server {
    boot_id: String,
    hostname: String,
    first_unix_ms: u64,
    last_unix_ms: u64,
    answers: u64,
    /// From its last answer, so that a copy that is gone can still be asked about its pause.
    applied_total: u64,
    window: serde_json::Value,
}

/// The answer of `/stats`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    interval_ms: u64,
    began_unix_ms: u64,
    #[serde(flatten)]
    counts: Counts,
    /// Between two successful answers.
    longest_gap_ms: u64,
    longest_gap_began_unix_ms: u64,
    /// `longest_gap_ms` minus the interval; 0 below three intervals.
    downtime_ms: u64,
    /// A gap that is still open, if requests fail just now.
    since_last_answer_ms: Option<u64>,
    first_errors: VecDeque<Failure>,
    served_by: Vec<Server>,
}

impl Record {
    pub(super) fn new(interval_ms: u64, now: Moment) -> Self {
        Self {
            interval_ms,
            window: 0,
            began: now,
            counts: Counts::default(),
            last_answer: None,
            gap: Gap::default(),
            first_errors: VecDeque::new(),
            servers: BTreeMap::new(),
        }
    }

    /// Begins afresh.
    pub(super) fn reset(&mut self, now: Moment) {
        *self = Self { window: self.window + 1, ..Self::new(self.interval_ms, now) };
    }

    /// A request goes out; gives the window that it belongs to.
    pub(super) fn sent(&mut self) -> u64 {
        self.counts.sent += 1;
        self.window
    }

    /// A request of `window` came to its end.
    pub(super) fn ended(&mut self, window: u64, answer: Result<Answer, Error>, now: Moment) {
        if window != self.window {
            return;
        }
        match answer {
            Ok(answer) => self.answered(answer, now),
            Err(error) => {
                self.counts.failed += 1;
                if self.first_errors.len() < ERRORS_KEPT {
                    let error = error.to_string();
                    self.first_errors.push_back(Failure { at_unix_ms: now.unix_ms, error });
                }
            }
        }
    }

    fn answered(&mut self, answer: Answer, now: Moment) {
        self.counts.answered += 1;
        if let Some(last) = self.last_answer.replace(now) {
            // The probe is never frozen: its own monotonic clock is the honest one.
            let ms = now.mono_ms.saturating_sub(last.mono_ms);
            if ms > self.gap.ms {
                self.gap = Gap { ms, began_unix_ms: last.unix_ms };
            }
        }
        let Answer { boot_id, hostname, applied_total, window } = answer;
        let server = self.servers.entry((boot_id.clone(), hostname.clone())).or_insert(Server {
            boot_id,
            hostname,
            first_unix_ms: now.unix_ms,
            last_unix_ms: now.unix_ms,
            answers: 0,
            applied_total: 0,
            window: serde_json::Value::Null,
        });
        server.last_unix_ms = now.unix_ms;
        server.answers += 1;
        server.applied_total = applied_total;
        server.window = window;
    }

    pub(super) fn report(&self, now: Moment) -> Report {
        let mut served_by: Vec<_> = self.servers.values().cloned().collect();
        served_by.sort_by_key(|server| server.first_unix_ms);
        let jitter = self.gap.ms < JITTER_INTERVALS * self.interval_ms;
        let since = |last: Moment| now.mono_ms.saturating_sub(last.mono_ms);
        Report {
            interval_ms: self.interval_ms,
            began_unix_ms: self.began.unix_ms,
            counts: self.counts.clone(),
            longest_gap_ms: self.gap.ms,
            longest_gap_began_unix_ms: self.gap.began_unix_ms,
            downtime_ms: if jitter { 0 } else { self.gap.ms - self.interval_ms },
            since_last_answer_ms: self.last_answer.map(since),
            first_errors: self.first_errors.clone(),
            served_by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment { unix_ms: 1_000_000 + ms, mono_ms: ms }
    }

    fn from(hostname: &str) -> Answer {
        Answer { boot_id: "b".into(), hostname: hostname.into(), ..Answer::default() }
    }

    #[test]
    fn downtime_is_the_longest_gap_minus_the_interval_and_zero_for_jitter() {
        let mut record = Record::new(10, at(0));
        for moment in [0, 10, 39] {
            let window = record.sent();
            record.ended(window, Ok(from("a")), at(moment));
        }
        let report = record.report(at(40));
        assert_eq!((report.longest_gap_ms, report.downtime_ms), (29, 0));
        let window = record.sent();
        record.ended(window, Err(Error::Timeout), at(60));
        let window = record.sent();
        record.ended(window, Ok(from("a")), at(69));
        let report = record.report(at(70));
        assert_eq!((report.longest_gap_ms, report.downtime_ms), (30, 20));
        assert_eq!((report.counts.sent, report.counts.answered, report.counts.failed), (5, 4, 1));
        assert_eq!(report.longest_gap_began_unix_ms, 1_000_039);
    }

    #[test]
    fn copies_are_told_apart_and_listed_in_order() {
        let mut record = Record::new(10, at(0));
        for (moment, hostname) in [(0, "z"), (10, "z"), (20, "a")] {
            let window = record.sent();
            record.ended(window, Ok(from(hostname)), at(moment));
        }
        let report = record.report(at(30));
        let seen: Vec<_> = report
            .served_by
            .iter()
            .map(|copy| {
                (copy.hostname.as_str(), copy.first_unix_ms, copy.last_unix_ms, copy.answers)
            })
            .collect();
        assert_eq!(seen, [("z", 1_000_000, 1_000_010, 2), ("a", 1_000_020, 1_000_020, 1)]);
    }

    #[test]
    fn after_a_reset_earlier_requests_do_not_count() {
        let mut record = Record::new(10, at(0));
        let window = record.sent();
        record.reset(at(5));
        record.ended(window, Err(Error::Short), at(6));
        let report = record.report(at(7));
        assert_eq!((report.counts.sent, report.counts.failed), (0, 0));
        assert!(report.first_errors.is_empty());
    }
}
