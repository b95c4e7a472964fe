//! A histogram of ages in bounded memory: exact below 128 ms, above it buckets of 1/64 of a power
//! of two, so that a percentile is at most 1.6 % too high and never too low.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Ages {
    buckets: BTreeMap<u64, u64>,
    count: u64,
    max: u64,
}

impl Ages {
    pub(super) fn record(&mut self, age_ms: u64) {
        *self.buckets.entry(bucket(age_ms)).or_default() += 1;
        self.count += 1;
        self.max = self.max.max(age_ms);
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The age that `percent` of all messages did not exceed; 0 without any.
    pub(super) fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.count * percent).div_ceil(100);
        let mut counted = 0;
        for (bucket, count) in &self.buckets {
            counted += count;
            if counted >= rank {
                return upper_bound(*bucket).min(self.max);
            }
        }
        0
    }
}

fn bucket(age: u64) -> u64 {
    let shift = u64::from(u64::BITS - age.leading_zeros()).saturating_sub(7);
    64 * shift + (age >> shift)
}

fn upper_bound(bucket: u64) -> u64 {
    let shift = (bucket / 64).saturating_sub(1);
    ((bucket - 64 * shift + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_percentile_is_never_too_low_and_hardly_too_high(
            mut ages in prop::collection::vec(0u64..10_000_000, 1..300)
        ) {
            let mut histogram = Ages::default();
            for age in &ages {
                histogram.record(*age);
            }
            ages.sort_unstable();
            let exact = ages[(ages.len() * 99).div_ceil(100) - 1];
            let got = histogram.percentile(99);
            prop_assert!(got >= exact && got <= exact + exact / 64, "{got} for {exact}");
            prop_assert!(got <= histogram.max());
        }
    }

    #[test]
    fn small_ages_are_exact_and_nothing_is_zero() {
        let mut histogram = Ages::default();
        assert_eq!(histogram.percentile(99), 0);
        (1..=100).for_each(|age| histogram.record(age));
        assert_eq!(histogram.percentile(99), 99);
        assert_eq!(histogram.max(), 100);
    }
}
