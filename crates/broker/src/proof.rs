//! The slow proof that a queue holds neither ready nor unacknowledged messages.
//!
//! The unacknowledged count of a queue whose type offers no live figure comes from statistics that
//! the broker emits every few seconds, so a lone zero proves nothing: it may be seconds old. What
//! tells one emission from the next is the queue process's `reductions`, a counter of its work.
//! From the moment when nothing is fed any more and nothing is ready, the figures of the *second*
//! new emission are younger than that moment; those of the first may have been taken before it.
//!
//! ```text
//! Begin ──ready 0──▶ seen emission n ──changed──▶ n+1 ──changed, 0/0──▶ proved
//!   ▲                                                 │
//!   └──────────── anything ready, or the counter gone ┘
//! ```
//!
//! Pure: samples in, verdict out.

use shadow_protocol::broker::Emptiness;

/// How many emissions after the first look make the figures younger than that look.
const EMISSIONS: u32 = 2;

/// What was seen of a queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Ready messages by a passive declare, true at this moment.
    pub ready: u64,
    /// The statistics, if the broker has any.
    pub statistics: Option<Statistics>,
}

/// A queue's figures as the broker emitted them last, seconds old perhaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Work done by the queue's process: changes with every emission.
    pub reductions: u64,
    /// Ready messages.
    pub ready: u64,
    /// Messages delivered and not acknowledged.
    pub unacknowledged: u64,
}

/// The proof's progress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proof {
    last: Option<u64>,
    emissions: u32,
}

impl Proof {
    /// Takes a sample and says whether the queue is proved empty by now.
    pub fn take(&mut self, sample: Sample) -> Emptiness {
        let Some(statistics) = sample.statistics.filter(|_| sample.ready == 0) else {
            *self = Self::default();
            return Emptiness::Unproved;
        };
        match self.last {
            // A counter that runs backwards belongs to another process: the queue was restarted.
            Some(last) if statistics.reductions < last => self.emissions = 0,
            Some(last) if statistics.reductions > last => self.emissions += 1,
            _ => {}
        }
        self.last = Some(statistics.reductions);
        if self.emissions >= EMISSIONS && statistics.ready == 0 && statistics.unacknowledged == 0 {
            Emptiness::Proved
        } else {
            Emptiness::Unproved
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(ready: u64, reductions: u64, unacknowledged: u64) -> Sample {
        let statistics = Some(Statistics { reductions, ready: 0, unacknowledged });
        Sample { ready, statistics }
    }

    #[test]
    fn a_lone_zero_and_one_emission_prove_nothing() {
        let mut proof = Proof::default();
        for (reductions, verdict) in [
            (7, Emptiness::Unproved),
            (7, Emptiness::Unproved),
            (9, Emptiness::Unproved),
            (9, Emptiness::Unproved),
            (12, Emptiness::Proved),
        ] {
            assert_eq!(proof.take(sample(0, reductions, 0)), verdict, "at {reductions}");
        }
    }

    #[test]
    fn a_ready_message_or_missing_statistics_begin_it_again() {
        let interruptions = [sample(1, 3, 0), Sample { ready: 0, statistics: None }];
        for interruption in interruptions {
            let mut proof = Proof::default();
            for reductions in 1..=3 {
                proof.take(sample(0, reductions, 0));
            }
            assert_eq!(proof.take(interruption), Emptiness::Unproved);
            assert_eq!(proof.take(sample(0, 4, 0)), Emptiness::Unproved);
            assert_eq!(proof.take(sample(0, 5, 0)), Emptiness::Unproved);
            assert_eq!(proof.take(sample(0, 6, 0)), Emptiness::Proved);
        }
    }

    #[test]
    fn a_restarted_queue_is_not_taken_for_its_predecessor() {
        let mut proof = Proof::default();
        for reductions in [100, 101, 5, 6] {
            assert_eq!(proof.take(sample(0, reductions, 0)), Emptiness::Unproved);
        }
        assert_eq!(proof.take(sample(0, 7, 0)), Emptiness::Proved);
    }

    proptest! {
        /// A queue that is fed nothing and whose figures are published in two stages, each with a
        /// period of its own, sampled at arbitrary moments: proved only when truly empty.
        #[test]
        fn two_stage_statistics_never_deceive(
            acknowledged_at in 0_u64..200,
            emit in 1_u64..60,
            collect in 1_u64..60,
            gaps in proptest::collection::vec(1_u64..20, 1..120),
        ) {
            let truth = |at: u64| u64::from(at < acknowledged_at);
            let emitted = |at: u64| (at / emit) * emit;
            let collected = |at: u64| emitted((at / collect) * collect);
            let mut proof = Proof::default();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                let at = collected(now);
                if proof.take(sample(0, at, truth(at))) == Emptiness::Proved {
                    prop_assert_eq!(truth(now), 0, "proved at {}", now);
                }
            }
        }
    }
}
