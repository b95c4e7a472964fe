//! The two clocks. The wall clock is what different processes compare; the monotonic clock tells
//! whether a process was stopped in between (a restored process' monotonic clock may go on where
//! it stood).

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One moment on both clocks, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Since the Unix epoch.
    pub unix_ms: u64,
    /// Since some moment early in this process' life.
    pub mono_ms: u64,
}

impl Moment {
    /// The present moment.
    pub fn now() -> Self {
        Self { unix_ms: unix_ms(), mono_ms: millis(START.elapsed().as_millis()) }
    }
}

/// Milliseconds since the Unix epoch; 0 for a clock set before it.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| millis(elapsed.as_millis()))
}

fn millis(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
