//! How fast the simulated world goes: the operator's settings, and how long things outside take.
//!
//! [`Tempo::shrunken`] is for finding faults: nothing is learned from waiting. [`Tempo::real`] is
//! for predictions: the operator's own settings, and durations with their sources.

use std::ops::Range;

use shadow_protocol::spec::{Deadlines, Settings};

/// Settings, durations and limits of a run. All durations are in milliseconds.
#[derive(Debug, Clone)]
pub struct Tempo {
    /// What the operator was started with.
    pub settings: Settings,
    /// `spec.replayCutoffSeconds`.
    pub cutoff: u64,
    /// Messages published per second by all publishers together; absent: by the scenario's interval.
    pub rate: Option<u64>,
    /// What the broker says of the application's rate, in messages per second.
    pub service_rate: Option<u64>,
    /// One write of the status, with the watch event that follows it.
    pub write: u64,
    /// One call to the broker or the API server.
    pub call: u64,
    /// The pull of the workload's own image to the target node.
    pub pull: u64,
    /// From the container's start until its probes pass.
    pub probed: Range<u64>,
    /// From the deletion of the source until it is gone, deleted by the operator.
    pub grace: Range<u64>,
    /// The same, deleted by its owner's controller.
    pub owner_grace: Range<u64>,
    /// A run with more events has no end.
    pub most_events: u32,
    /// Neither has one that takes longer.
    pub longest: u64,
}

impl Tempo {
    /// As the operator's, but shorter: nothing is learned from waiting.
    pub fn shrunken() -> Self {
        Self {
            settings: Settings {
                pause_budget_ms: 50,
                settle_ms: 300,
                linger_ms: 900,
                ebb_ms: 30,
                overlap_ms: 30,
                park_pause_ms: 500,
                statistics_ms: 100,
                wake_ms: 0,
                kubelet_ms: 200,
                admission: true,
                deadlines: Deadlines {
                    preflight: 3_000,
                    broker: 3_000,
                    drain: 8_000,
                    obey: 2_000,
                    proof: 3_000,
                    checkpoint: 2_000,
                    transfer: 3_000,
                    restore: 3_000,
                    heir: 1_500,
                    progress: 1_000,
                    switch: 3_000,
                },
            },
            cutoff: 400,
            rate: None,
            service_rate: None,
            write: 1,
            call: 1,
            pull: 10,
            probed: 1..40,
            grace: 5..150,
            owner_grace: 20..200,
            most_events: 400_000,
            longest: 300_000,
        }
    }

    /// The operator's own settings, and durations fitted to what the lab measured.
    pub fn real() -> Self {
        Self {
            settings: Settings { admission: true, ..Settings::default() },
            // The default of `spec.replayCutoffSeconds`.
            cutoff: 120_000,
            write: WRITE,
            call: CALL,
            pull: 300,
            probed: 20..60,
            grace: GRACE,
            owner_grace: GRACE,
            most_events: 100_000_000,
            longest: 24 * 3_600_000,
            ..Self::shrunken()
        }
    }
}

/// A status write to a single-node API server, and the watch event that comes back (assumed). The
/// preflight's own time is left out: phase Pending is 0.05 to 0.11 s on the lab, and 0.02 s here.
const WRITE: u64 = 12;
/// A call to RabbitMQ or the API server on the same network (assumed).
const CALL: u64 = 8;
/// A pod with a preStop hook of 1 s, as the consumer of the evaluation has one, until the kubelet
/// has confirmed that it is gone [fitted: what is left of phase Finalizing,
/// measured 4.3 to 4.7 s, when overlap and calls are taken off].
const GRACE: Range<u64> = 2_500..2_800;

/// How long the parts of a migration take that depend on the checkpoint's size.
///
/// Fitted to ten migrations on the lab with a checkpoint of 15 MB and 60 messages a second: the pause
/// 0.29 to 0.40 s, Transferring 0.7 to 1.6 s, Restoring 0.5 to 0.7 s. None was measured by itself. How
/// they grow with the size was not measured at all; what is written here for it is an assumption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durations {
    /// The container stands still for its checkpoint.
    pub checkpoint: u64,
    /// The transfer Job begins, reads the archive and pushes it.
    pub transfer: u64,
    /// The target pod is created, pulls the image, and the container is restored.
    pub start: u64,
}

impl Durations {
    /// For a checkpoint of `megabytes` on a network of `bandwidth` bytes per second.
    pub fn of(megabytes: u64, bandwidth: u64) -> Self {
        let over_network = megabytes.saturating_mul(1_000_000_000) / bandwidth.max(1);
        Self {
            // The measured pause without the ebb and the orders; 250 MB/s to the node's disk (assumed).
            checkpoint: 120 + megabytes.saturating_mul(4),
            // Pod of the Job, registry's round trips.
            transfer: 800 + over_network,
            // Pod and sandbox; the image comes over the network and is read once (500 MB/s, assumed).
            start: 300 + over_network + megabytes.saturating_mul(2),
        }
    }
}

/// So many messages in so many milliseconds: a service time on a clock of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Messages per turn.
    pub messages: u32,
    /// Milliseconds per turn.
    pub millis: u64,
}

impl Pace {
    /// What comes closest to `micros` microseconds per message with short turns.
    pub fn of(micros: u64) -> Self {
        let micros = micros.max(1);
        let few = u32::try_from(1_000 / micros).unwrap_or(u32::MAX);
        let candidates = (1..=few.max(10)).map(|messages| {
            let millis = (u64::from(messages) * micros + 500) / 1_000;
            Self { messages, millis: millis.max(1) }
        });
        let fewest = Self { messages: 1, millis: micros.div_ceil(1_000) };
        let error = |pace: &Self| {
            let exact = u64::from(pace.messages) * micros;
            // Per million messages, so that turns of different length compare.
            exact.abs_diff(pace.millis * 1_000) * 1_000_000 / u64::from(pace.messages)
        };
        candidates.min_by_key(error).unwrap_or(fewest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_time_becomes_turns_of_whole_milliseconds() {
        for (micros, messages, millis) in
            [(2_000, 1, 2), (1_000, 1, 1), (500, 2, 1), (2_500, 2, 5), (10, 100, 1), (1, 1_000, 1)]
        {
            assert_eq!(Pace::of(micros), Pace { messages, millis }, "{micros} µs");
        }
        let Pace { messages, millis } = Pace::of(333);
        assert!(
            (u64::from(messages) * 333).abs_diff(millis * 1_000) < 10,
            "{messages} in {millis}"
        );
    }

    #[test]
    fn a_bigger_checkpoint_and_a_slower_network_take_longer() {
        let small = Durations::of(15, 100_000_000);
        assert_eq!((small.checkpoint, small.transfer, small.start), (180, 950, 480));
        let slow = Durations::of(15, 10_000_000);
        assert_eq!(slow.transfer, 2_300);
        assert!(Durations::of(1_500, 100_000_000).checkpoint > 6_000);
    }
}
