//! A set of sequence numbers kept as closed intervals: a consumer that misses nothing needs one.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Intervals {
    ends: BTreeMap<u64, u64>,
    len: u64,
}

impl Intervals {
    /// Adds `value`; false if it was there.
    pub(super) fn insert(&mut self, value: u64) -> bool {
        let before = self.ends.range(..=value).next_back().map(|(start, end)| (*start, *end));
        if before.is_some_and(|(_, end)| value <= end) {
            return false;
        }
        self.len += 1;
        let start = match before {
            Some((start, end)) if end + 1 == value => start,
            _ => value,
        };
        let next = value.checked_add(1).and_then(|next| self.ends.remove(&next));
        self.ends.insert(start, next.unwrap_or(value));
        true
    }

    /// How many values it holds.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}
