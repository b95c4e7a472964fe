//! The control messages of the specification: what an application is told on `ms2m.control.<pod>`.

use serde::{Deserialize, Serialize};

/// Which of the two copies an order is for; an application may mute side effects by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The copy that has been running all along.
    Source,
    /// The restored copy.
    Target,
}

/// An order to an application.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", content = "payload")]
pub enum Control {
    /// Cancel, finish and acknowledge what is held, then consume `queue` without declaring it.
    #[serde(rename = "START_REPLAY")]
    StartReplay {
        /// The queue to consume from now on.
        queue: String,
        /// The copy the order is for.
        role: Role,
    },
    /// Go on with the application's own queue.
    #[serde(rename = "END_REPLAY")]
    EndReplay,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_format_is_the_specifications() {
        let start = Control::StartReplay { queue: "q".into(), role: Role::Source };
        assert_eq!(
            serde_json::to_string(&start).unwrap(),
            r#"{"type":"START_REPLAY","payload":{"queue":"q","role":"source"}}"#
        );
        assert_eq!(serde_json::to_string(&Control::EndReplay).unwrap(), r#"{"type":"END_REPLAY"}"#);
    }
}
