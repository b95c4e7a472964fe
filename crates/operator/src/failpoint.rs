//! Where a test build (feature `failpoints`) dies, or its clock jumps, on demand; in any other build
//! nothing of it exists.
//!
//! With `SHADOW_FAILPOINTS` set, annotations of a migration name an effect by its step and its place there:
//!
//! ```text
//! failpoint.ms2m.io/kill: 7 before checkpointing/freeze/0    the leader of generation 7 kills itself
//! failpoint.ms2m.io/clock: -3600000 checkpointing/freeze/0   the clock jumps by so many milliseconds, once
//! ```
//!
//! A successor has another generation, so nobody dies twice of the same annotation.

use shadow_api::StatefulMigration;
use shadow_protocol::step::Step;

/// Before or after an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn pass(_: When, _: &StatefulMigration, _: i32, _: Step, _: usize) {}

#[cfg(not(feature = "failpoints"))]
pub(crate) fn jumped() -> i64 {
    0
}

#[cfg(feature = "failpoints")]
pub(crate) use on::{jumped, pass};

#[cfg(feature = "failpoints")]
mod on {
    use std::sync::atomic::{AtomicI64, Ordering};

    use kube::ResourceExt as _;

    use super::{StatefulMigration, Step, When};

    const KILL: &str = "failpoint.ms2m.io/kill";
    const CLOCK: &str = "failpoint.ms2m.io/clock";

    static JUMPED: AtomicI64 = AtomicI64::new(0);

    /// By how many milliseconds the clock has jumped.
    pub(crate) fn jumped() -> i64 {
        JUMPED.load(Ordering::Relaxed)
    }

    /// Dies here, or has the clock jump, if that is asked for.
    pub(crate) fn pass(
        when: When,
        migration: &StatefulMigration,
        generation: i32,
        step: Step,
        place: usize,
    ) {
        if std::env::var_os("SHADOW_FAILPOINTS").is_none() {
            return;
        }
        let asked = |name: &str| migration.annotations().get(name).map(String::as_str);
        let (side, at) = (format!("{when:?}").to_lowercase(), format!("{step}/{place}"));
        tracing::info!(side, at, "failpoint");
        if asked(KILL) == Some(&format!("{generation} {side} {at}")) {
            tracing::warn!(side, at, "failpoint: this process ends");
            kill_itself();
        }
        if let Some((by, there)) = asked(CLOCK).and_then(|text| text.split_once(' '))
            && there == at
            && let Ok(by) = by.parse()
        {
            JUMPED.store(by, Ordering::Relaxed);
            tracing::warn!(by, at, "failpoint: the clock jumps");
        }
    }

    /// As `kill -9` would: nothing is closed, nothing is said. A signal would not reach it: in its container
    /// it is process 1, which is spared those that it sends itself.
    fn kill_itself() -> ! {
        std::process::exit(137)
    }
}
