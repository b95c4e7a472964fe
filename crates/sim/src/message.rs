//! What travels through the simulated broker, and sets of it that are counted, not enumerated.

use std::collections::BTreeMap;
use std::sync::Arc;

use shadow_broker::memory::Wire;
use shadow_broker::memory::core::{Content, Serial};
use shadow_protocol::control::Control;

/// The broker, with what the simulation sends through it.
pub type Broker = shadow_broker::memory::core::Broker<Message>;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A publisher's.
    Data(Serial),
    /// The operator's, to an application.
    Order(Arc<Control>),
}

impl Wire for Message {
    fn order(control: &Control) -> Result<Self, serde_json::Error> {
        Ok(Self::Order(Arc::new(control.clone())))
    }
}

impl Content for Message {
    fn later(&self, by: u64) -> Self {
        match self {
            Self::Data(serial) => Self::Data(serial.later(by)),
            Self::Order(_) => self.clone(),
        }
    }

    fn continues(&self, by: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Data(serial), Self::Data(next)) => serial.continues(by, next),
            _ => false,
        }
    }
}

/// Publishers' messages in a row: the first, and how many.
pub type Run = (Serial, u64);

/// A set of publishers' messages, as runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serials {
    /// The last number of each run, by publisher and first number.
    runs: BTreeMap<(u32, u64), u64>,
}

impl Serials {
    /// Adds a run.
    pub fn insert(&mut self, (first, count): Run) {
        if count > 0 {
            self.remove((first, count));
            self.runs.insert((first.publisher, first.sequence), first.sequence + count - 1);
        }
    }

    /// Takes a run away; how many of its messages there were.
    pub fn remove(&mut self, (first, count): Run) -> u64 {
        let (publisher, from, end) = (first.publisher, first.sequence, first.sequence + count);
        let before_end = self.runs.range((publisher, 0)..(publisher, end)).rev();
        let touched = before_end.take_while(|(_, last)| **last >= from);
        let touched: Vec<(u64, u64)> = touched.map(|(&(_, start), &last)| (start, last)).collect();
        let mut removed = 0;
        for (start, last) in touched {
            self.runs.remove(&(publisher, start));
            if start < from {
                self.runs.insert((publisher, start), from - 1);
            }
            if last >= end {
                self.runs.insert((publisher, end), last);
            }
            removed += last.min(end - 1) - start.max(from) + 1;
        }
        removed
    }

    /// The runs, by publisher and number.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        self.runs.iter().map(|(&(publisher, sequence), &last)| {
            (Serial { publisher, sequence }, last + 1 - sequence)
        })
    }

    /// How many messages there are.
    pub fn count(&self) -> u64 {
        self.runs().map(|(_, count)| count).sum()
    }

    /// The messages that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        for run in other.runs() {
            rest.remove(run);
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sequence: u64, count: u64) -> Run {
        (Serial { publisher: 0, sequence }, count)
    }

    #[test]
    fn a_set_of_runs_is_a_set_of_numbers() {
        let mut set = Serials::default();
        set.insert(run(1, 5));
        set.insert(run(4, 6));
        set.insert((Serial { publisher: 1, sequence: 3 }, 1));
        assert_eq!(set.count(), 10);
        assert_eq!(set.remove(run(3, 3)), 3);
        assert_eq!(set.remove(run(3, 3)), 0);
        assert_eq!(set.runs().take(2).collect::<Vec<_>>(), [run(1, 2), run(6, 4)]);
        let mut other = Serials::default();
        other.insert(run(0, 8));
        assert_eq!(set.without(&other).runs().next(), Some(run(8, 2)));
    }
}
