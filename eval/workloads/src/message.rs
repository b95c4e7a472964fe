//! What travels: the producer's messages and the specification's control messages.

use serde::{Deserialize, Serialize};

/// One message of the producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Unique per publisher *and* producer process, so that a restarted producer, which counts
    /// from 1 again, is not taken for a duplicate.
    pub publisher: String,
    /// From 1, without gaps.
    pub seq: u64,
    /// When it was first published, in milliseconds since the Unix epoch.
    pub published_at: u64,
    /// Absent when first published; the n-th time that the producer sent it again because no
    /// confirm came. (publisher, seq, republication) names one message on the wire, so a copy
    /// that the producer made is never confused with one that a migration made.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub republication: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// What a control message tells the consumer to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `START_REPLAY`: consume this queue from now on.
    Consume(String),
    /// `END_REPLAY`: consume the application's own queue.
    Own,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Control {
    #[serde(rename = "START_REPLAY")]
    Start { payload: Target },
    #[serde(rename = "END_REPLAY")]
    End {},
}

#[derive(Deserialize)]
struct Target {
    queue: String,
}

impl Order {
    /// Reads a control message; fields it does not need (`role`) are ignored.
    pub fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(match serde_json::from_slice(body)? {
            Control::Start { payload } => Self::Consume(payload.queue),
            Control::End {} => Self::Own,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_the_specification_writes_them() {
        let start = br#"{"type":"START_REPLAY","payload":{"queue":"q.1","role":"source"}}"#;
        assert_eq!(Order::parse(start).unwrap(), Order::Consume("q.1".into()));
        for end in [r#"{"type":"END_REPLAY"}"#, r#"{"type":"END_REPLAY","payload":{"role":"x"}}"#] {
            assert_eq!(Order::parse(end.as_bytes()).unwrap(), Order::Own);
        }
    }

    #[test]
    fn a_malformed_order_is_an_error() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"type":"START_REPLAY"}"#,
            r#"{"type":"START_REPLAY","payload":{}}"#,
            r#"{"type":"START_REPLAY","payload":{"queue":7}}"#,
            r#"{"type":"STOP"}"#,
        ] {
            assert!(Order::parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_first_publication_does_not_mention_republication() {
        let message = Message { publisher: "p".into(), seq: 1, published_at: 2, republication: 0 };
        let json = serde_json::to_string(&message).unwrap();
        assert_eq!(json, r#"{"publisher":"p","seq":1,"published_at":2}"#);
        assert_eq!(serde_json::from_str::<Message>(&json).unwrap(), message);
    }
}
