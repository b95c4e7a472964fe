//! The figures of a migration, each by the one definition it has in `docs/figures.md`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

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
    use serde_json::json;

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
