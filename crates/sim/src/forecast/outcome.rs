//! How a run ended, in the words of the invariants of `docs/handoff.md`.

use serde::Serialize;
use shadow_protocol::phase::Phase;

use crate::verdict::{Tally, Verdict};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Result {
    /// The target has taken over.
    Completed,
    /// Undone: the source goes on.
    RolledBack,
    /// Nothing was touched.
    Refused,
    /// It never ended, which must not be.
    Unfinished,
}

/// How it ended, and what became of the messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How it ended.
    pub result: Result,
    /// Why it did not complete: one word.
    pub reason: Option<String>,
    /// The same, as the status would say it.
    pub message: Option<String>,
    /// What became of the messages; absent when no single copy survives.
    pub messages: Option<Tally>,
    /// Each invariant's word.
    pub invariants: Vec<Invariant>,
}

/// An invariant's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invariant {
    /// Its number in `docs/handoff.md`.
    pub number: u8,
    /// What it says.
    pub claim: &'static str,
    /// Whether it was kept.
    pub holds: bool,
    /// What was found, if it was not kept, or if a fault is to blame.
    pub note: Option<String>,
}

const CLAIMS: [&str; 6] = [
    "no message is lost",
    "none is applied twice",
    "each publisher's order is kept",
    "at most one copy consumes the queue",
    "one copy survives, and it is the right one",
    "completed or rolled back, and nothing is left over",
];

impl Outcome {
    pub(super) fn of(last: Option<&Phase>, verdict: Verdict) -> Self {
        let (result, failure) = match last {
            Some(Phase::Completed { .. }) => (Result::Completed, None),
            Some(Phase::Failed { failure, rolled_back: true }) => {
                (Result::RolledBack, Some(failure))
            }
            Some(Phase::Failed { failure, .. }) => (Result::Refused, Some(failure)),
            _ => (Result::Unfinished, None),
        };
        let invariants = (1..).zip(CLAIMS).map(|(number, claim)| {
            let broken: Vec<&str> = verdict
                .broken()
                .filter(|(by, _)| by.contains(&number))
                .map(|(_, why)| why)
                .collect();
            let excuse = verdict.tally.as_ref().and_then(|tally| excuse(number, tally));
            let note = if broken.is_empty() { excuse } else { Some(broken.join("; ")) };
            Invariant { number, claim, holds: broken.is_empty(), note }
        });
        Self {
            result,
            reason: failure.map(|failure| failure.reason.clone()),
            message: failure.map(|failure| failure.message.clone()),
            invariants: invariants.collect(),
            messages: verdict.tally,
        }
    }

    /// Nothing happened that must not happen.
    pub fn holds(&self) -> bool {
        self.invariants.iter().all(|invariant| invariant.holds)
    }
}

/// What was found is the fault's own doing: it would be so without a migration, too.
fn excuse(number: u8, tally: &Tally) -> Option<String> {
    let count = match number {
        1 => tally.lost,
        2 => tally.duplicated,
        3 => tally.reordered,
        _ => 0,
    };
    (count > 0).then(|| format!("but for {count}: the fault's doing, as without a migration"))
}
