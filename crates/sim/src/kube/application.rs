//! What runs in containers is not the kubelet's business: it asks an [`Application`].

use std::time::Duration;

use serde_json::{Value, json};

use super::object::list;

/// A container that is about to start.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// Its pod.
    pub pod: &'a Value,
    /// Its entry in the pod's spec.
    pub container: &'a Value,
    /// Its own ID, a new one for each start.
    pub id: &'a str,
    /// The node.
    pub node: &'a str,
    /// The pod's address.
    pub ip: &'a str,
}

/// What comes of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It runs until it is stopped or crashed from outside.
    Runs,
    /// It ends by itself.
    Exits {
        /// After so long.
        after: Duration,
        /// Exit code.
        code: i64,
        /// What it leaves in its termination message.
        message: String,
    },
    /// The runtime could not start it.
    Fails {
        /// The runtime's words.
        message: String,
    },
}

/// What runs in the containers of all nodes.
pub trait Application: Send {
    /// How long `node` takes to have `image`, or the registry's words why it can't be had.
    fn pull(&mut self, node: &str, image: &str) -> Result<Duration, String> {
        let _ = (node, image);
        Ok(Duration::ZERO)
    }

    /// A container starts.
    fn start(&mut self, start: Start<'_>) -> Life;

    /// Whether the container passes its readiness probe.
    fn ready(&mut self, id: &str) -> bool {
        let _ = id;
        true
    }

    /// The container is asked to end: how long it takes, within its grace.
    fn stop(&mut self, id: &str) -> Duration {
        let _ = id;
        Duration::ZERO
    }

    /// The container is no more.
    fn ended(&mut self, id: &str) {
        let _ = id;
    }

    /// The container is checkpointed into `archive`: how long it stood still for it, or the
    /// runtime's words why it can't be done.
    fn checkpoint(&mut self, id: &str, archive: &str) -> Result<Duration, String>;
}

/// The operator's own containers that need no application: the pre-pull, which never starts, and the
/// transfer Job, which pushes an image of `bytes` in the time `takes`.
pub fn operators_own(start: Start<'_>, bytes: u64, takes: Duration) -> Option<Life> {
    if list(start.container, "/command").first().is_some_and(|c| c == "/ms2m-pull-only") {
        return Some(Life::Fails { message: "executable file not found in $PATH".to_owned() });
    }
    let [command, _, reference, ..] = list(start.container, "/args") else { return None };
    let repository = reference.as_str()?.rsplit_once(':')?.0;
    if command != "transfer" {
        return None;
    }
    let image = format!("{repository}@sha256:{:064x}", fingerprint(reference.as_str()?));
    let message = json!({ "image": image, "bytes": bytes }).to_string();
    Some(Life::Exits { after: takes, code: 0, message })
}

/// FNV-1a: a digest that only has to differ.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
