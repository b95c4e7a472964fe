//! How long a process stands still while it is checkpointed, and what must not notice.

/// Of a process with next to no memory, in milliseconds. *[measured on the lab: 260 to 350]*
const AT_LEAST_MS: u64 = 350;
/// Bytes that CRIU writes in a millisecond. *[measured on the lab: 256 MB in 1.3 s]*
const BYTES_PER_MS: u64 = 200_000;
/// Assumed where the kubelet does not say how much memory a container has.
const UNKNOWN_BYTES: u64 = 256_000_000;

/// How long the checkpoint of a container with so much memory stops it, in milliseconds.
pub fn predicted_ms(memory_bytes: Option<u64>) -> u64 {
    AT_LEAST_MS + memory_bytes.unwrap_or(UNKNOWN_BYTES) / BYTES_PER_MS
}

/// A container's liveness probe, with the defaults of Kubernetes filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// Milliseconds between two.
    pub period_ms: u64,
    /// Milliseconds after which one has failed.
    pub timeout_ms: u64,
    /// So many in a row end the container.
    pub failures: u32,
}

impl Liveness {
    /// Whether a process that stands still so long goes on living: a probe that began just before it
    /// stopped is answered in time, or fewer fail than it takes.
    pub fn outlasts(self, freeze_ms: u64) -> bool {
        let failing = freeze_ms / self.period_ms.max(1) + 1;
        freeze_ms < self.timeout_ms || failing < u64::from(self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_is_predicted_from_the_memory() {
        assert_eq!(predicted_ms(Some(0)), 350);
        assert_eq!(predicted_ms(Some(256_000_000)), 1_630);
        assert_eq!(predicted_ms(None), predicted_ms(Some(256_000_000)));
    }

    #[test]
    fn a_probe_ends_a_process_that_stands_still_for_too_many() {
        // The defaults of Kubernetes.
        let usual = Liveness { period_ms: 10_000, timeout_ms: 1_000, failures: 3 };
        assert!(usual.outlasts(19_999) && !usual.outlasts(20_000));
        let strict = Liveness { period_ms: 1_000, timeout_ms: 1_000, failures: 1 };
        assert!(strict.outlasts(999) && !strict.outlasts(1_000));
        let patient = Liveness { timeout_ms: 5_000, ..strict };
        assert!(patient.outlasts(4_999) && !patient.outlasts(5_000));
        // Two fail within 1.5 s, the third is answered.
        let quick = Liveness { period_ms: 1_000, timeout_ms: 500, failures: 3 };
        assert!(quick.outlasts(1_999) && !quick.outlasts(2_000));
    }
}
