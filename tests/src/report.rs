//! The figures of a migration, each by the one definition it has in `docs/figures.md`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

/// What a migration cost, and whether every message was applied exactly once.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `Completed` or `Failed`.
    pub result: String,
    /// From the object's creation to its `completionTime`, in seconds.
    pub total_s: f64,
    /// Seconds in each phase.
    pub phases_s: BTreeMap<String, f64>,
    /// Size of the checkpoint archive.
    pub checkpoint_bytes: u64,
    /// The probe through the Service.
    pub probe: Option<Probe>,
    /// Longest time in which messages waited and no copy applied one, in milliseconds.
    pub pause_ms: u64,
    /// The messages.
    pub messages: Messages,
    /// The state served is that of the process that ran on the source node.
    pub state_continued: bool,
    /// Node before.
    pub source_node: String,
    /// Node after.
    pub target_node: String,
    /// What ran.
    pub versions: BTreeMap<String, String>,
}

/// The probe: open loop, a new connection per request.
#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    /// Interval in milliseconds.
    pub interval_ms: u64,
    /// Requests sent.
    pub sent: u64,
    /// Requests without a good answer within 1 s.
    pub failed: u64,
    /// Longest time between two good answers.
    pub longest_gap_ms: u64,
    /// The same minus the interval; 0 below three intervals.
    pub downtime_ms: u64,
    /// What the first failures said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub first_errors: Vec<String>,
}

/// The messages, by the producer's confirms and the surviving copy's memory.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Messages {
    /// Confirmed by the broker.
    pub published: u64,
    /// Applied to the state that survives.
    pub applied: u64,
    /// Confirmed and never applied.
    pub lost: u64,
    /// Applied more than once.
    pub duplicated: u64,
    /// Applied after a later one of the same publisher.
    pub reordered: u64,
    /// Delivered more than once.
    pub redelivered: u64,
    /// Of those applied more than once, the ones that were delivered more than once.
    pub again: u64,
    /// Refused by the broker, or without an answer when a publisher's connection broke: sent again.
    pub republished: u64,
    /// Taken by the broker for nobody.
    pub returned: u64,
    /// Oldest message when it was applied.
    pub max_age_ms: u64,
    /// 99th percentile of the age.
    pub p99_age_ms: u64,
}

/// A number in a JSON document; 0 when it is not there.
pub fn number(document: &Value, path: &str) -> u64 {
    document.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// One ledger of several pods that consume one queue, from what each has applied: `/ledger` and
/// `/applied`. What two of them have applied is there twice. Nobody keeps an order between them.
pub fn merged(ledgers: &[(Value, Value)]) -> Value {
    let mut sets: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for (publisher, intervals) in ledgers.iter().filter_map(|(_, set)| set.as_object()).flatten() {
        let of = sets.entry(publisher.clone()).or_default();
        let pairs = intervals.as_array().into_iter().flatten();
        of.extend(pairs.map(|pair| (number(pair, "/0"), number(pair, "/1"))));
    }
    let mut duplicated = 0;
    let mut publishers = serde_json::Map::new();
    for (publisher, mut intervals) in sets {
        intervals.sort_unstable();
        let (mut highest, mut gaps) = (0, 0);
        for (first, last) in intervals {
            gaps += first.saturating_sub(highest + 1);
            duplicated += (highest + 1).min(last + 1).saturating_sub(first);
            highest = last.max(highest);
        }
        publishers.insert(publisher, json!({ "highest": highest, "gaps": gaps }));
    }
    let sum = |path: &str| ledgers.iter().map(|(ledger, _)| number(ledger, path)).sum::<u64>();
    let mut whole = ledgers.first().map(|(ledger, _)| ledger.clone()).unwrap_or_default();
    whole["applied_total"] = json!(sum("/applied_total"));
    for count in ["applied", "redelivered", "inversions"] {
        whole["totals"][count] = json!(sum(&format!("/totals/{count}")));
    }
    whole["totals"]["duplicated"] = json!(duplicated + sum("/totals/duplicated"));
    whole["publishers"] = publishers.into();
    whole
}

/// Compares what every publisher was confirmed with what the ledger says was applied.
///
/// The ledger's own gaps lie below its highest number; what is missing above it is the difference
/// to the highest confirmed one.
pub fn messages(producer: &Value, ledger: &Value) -> Messages {
    let mut messages = Messages::default();
    let publishers = producer["publishers"].as_object();
    for (id, sent) in publishers.into_iter().flatten() {
        let got = &ledger["publishers"][id.as_str()];
        messages.published += number(sent, "/confirmed");
        let missing_above =
            number(sent, "/highest_confirmed").saturating_sub(number(got, "/highest"));
        messages.lost += number(got, "/gaps") + missing_above;
    }
    messages.republished = number(producer, "/totals/republished");
    messages.returned = number(producer, "/totals/returned");
    let totals = &ledger["totals"];
    messages.applied = number(totals, "/applied");
    messages.duplicated = number(totals, "/duplicated");
    messages.reordered = number(totals, "/inversions");
    messages.redelivered = number(totals, "/redelivered");
    messages.again = number(totals, "/redelivered_duplicates");
    messages
}

impl Report {
    /// Zeros everywhere: nothing lost, duplicated, reordered or unanswered.
    pub fn is_clean(&self) -> bool {
        let m = &self.messages;
        let probed = self.probe.as_ref().is_none_or(|probe| probe.failed == 0);
        self.result == "Completed"
            && m.lost == 0
            && m.duplicated == 0
            && m.reordered == 0
            && m.republished + m.returned == 0
            && probed
            && self.state_continued
    }

    /// The report for people.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let m = &self.messages;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} in {:.2} s, {} -> {}",
            self.result, self.total_s, self.source_node, self.target_node
        );
        for (phase, seconds) in &self.phases_s {
            let _ = writeln!(text, "  {phase:<14} {seconds:>6.2} s");
        }
        let _ = writeln!(text, "messages       {} published, {} applied", m.published, m.applied);
        let _ = writeln!(
            text,
            "               {} lost, {} duplicated, {} reordered ({} redelivered)",
            m.lost, m.duplicated, m.reordered, m.redelivered
        );
        if m.republished + m.returned > 0 {
            let _ = writeln!(
                text,
                "publishers     {} sent again, {} returned",
                m.republished, m.returned
            );
        }
        let _ = writeln!(
            text,
            "age            {} ms at most, {} ms for 99 %",
            m.max_age_ms, m.p99_age_ms
        );
        let _ = writeln!(text, "pause          {} ms", self.pause_ms);
        if let Some(probe) = &self.probe {
            let _ = writeln!(
                text,
                "probe          {} sent, {} failed, longest gap {} ms",
                probe.sent, probe.failed, probe.longest_gap_ms
            );
            for error in &probe.first_errors {
                let _ = writeln!(text, "               {error}");
            }
        }
        let _ = writeln!(text, "checkpoint     {} MB", self.checkpoint_bytes.div_ceil(1_000_000));
        let continued =
            if self.state_continued { "the source's, continued" } else { "NOT the source's" };
        let _ = writeln!(text, "state          {continued}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_pods_have_applied_is_counted_once_and_twice() {
        let of = |applied: u64, intervals: Value| {
            let totals = json!({ "applied": applied, "duplicated": 0, "inversions": 0 });
            let ledger = json!({ "applied_total": applied, "totals": totals });
            (ledger, json!({ "a": intervals }))
        };
        let producer = json!({ "publishers": {
            "a": { "confirmed": 10, "highest_confirmed": 10 },
        }});
        let judge = |ledgers: &[(Value, Value)]| {
            let messages = messages(&producer, &merged(ledgers));
            (messages.lost, messages.duplicated, messages.applied)
        };
        let first = || of(6, json!([[1, 3], [7, 9]]));
        assert_eq!(judge(&[first(), of(4, json!([[4, 6], [10, 10]]))]), (0, 0, 10));
        assert_eq!(judge(&[first(), of(2, json!([[4, 5]]))]), (2, 0, 8));
        assert_eq!(judge(&[first(), of(5, json!([[3, 6], [10, 10]]))]), (0, 1, 11));
        assert_eq!(judge(&[first(), of(5, json!([[4, 7], [10, 10]]))]), (0, 1, 11));
    }

    #[test]
    fn gaps_and_a_missing_tail_are_lost() {
        let producer = json!({ "publishers": {
            "a": { "confirmed": 10, "highest_confirmed": 10 },
            "b": { "confirmed": 5, "highest_confirmed": 5 },
        }});
        let ledger = json!({
            "totals": { "applied": 13, "duplicated": 1, "inversions": 0, "redelivered": 2 },
            "publishers": { "a": { "highest": 8, "gaps": 1 }, "b": { "highest": 5, "gaps": 0 } },
        });
        let messages = messages(&producer, &ledger);
        assert_eq!((messages.published, messages.lost, messages.duplicated), (15, 3, 1));
    }

    #[test]
    fn a_publisher_the_ledger_never_saw_is_lost_whole() {
        let producer = json!({ "publishers": { "a": { "confirmed": 4, "highest_confirmed": 4 } } });
        assert_eq!(messages(&producer, &json!({ "totals": {} })).lost, 4);
    }
}
