//! The only place where the operator reads the clock.

use shadow_protocol::time::Time;

/// Now, in milliseconds since the Unix epoch.
pub fn now() -> Time {
    Time(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

/// `time` as RFC 3339 with milliseconds.
pub fn rfc3339(time: Time) -> String {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| String::new(), |t| format!("{t:.3}"))
}
