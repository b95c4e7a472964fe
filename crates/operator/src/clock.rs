//! The only place where the operator reads the clock.
//!
//! Normally that is the machine's. A simulation lets the operator of its thread follow tokio's clock
//! instead, which it can pause: see [`follow`].

use std::cell::Cell;
use std::marker::PhantomData;

use shadow_protocol::time::Time;
use tokio::time::Instant;

use crate::failpoint;

thread_local! {
    static FOLLOWED: Cell<Option<(Instant, Time)>> = const { Cell::new(None) };
}

/// While it lives, the clock of its thread is tokio's.
#[must_use = "the clock is the machine's again once this is dropped"]
pub struct Followed(PhantomData<*const ()>);

/// From now on `now` on this thread is `start` plus what passes on tokio's clock.
pub fn follow(start: Time) -> Followed {
    FOLLOWED.set(Some((Instant::now(), start)));
    Followed(PhantomData)
}

impl Drop for Followed {
    fn drop(&mut self) {
        FOLLOWED.set(None);
    }
}

/// Now, in milliseconds since the Unix epoch.
pub fn now() -> Time {
    if let Some((begun, start)) = FOLLOWED.get() {
        let passed = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        return Time(start.0.saturating_add(passed));
    }
    let now = jiff::Timestamp::now().as_millisecond().saturating_add(failpoint::jumped());
    Time(u64::try_from(now).unwrap_or(0))
}

/// `time` as RFC 3339 with milliseconds.
pub fn rfc3339(time: Time) -> String {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| String::new(), |t| format!("{t:.3}"))
}

/// `time` as RFC 3339 in whole seconds, as the API server writes it.
pub fn rfc3339_seconds(time: Time) -> String {
    let seconds = i64::try_from(time.0 / 1_000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_followed_clock_stands_still_and_passes_with_tokios() {
        let followed = follow(Time(1_000));
        assert_eq!(now(), Time(1_000));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(now(), Time(1_250));
        drop(followed);
        assert!(now().0 > 1_700_000_000_000, "the machine's clock again");
    }
}
