//! What operator, transfer Job and node agents say to each other: JSON over TLS, and one upload.
//!
//! Unknown fields are refused: an order that is understood in part only would be carried out in part.

use serde::{Deserialize, Serialize};

/// The audience of the tokens that agents take.
pub const AUDIENCE: &str = "ms2m-agent";
/// Where agents, their certificates and the operator live.
pub const NAMESPACE: &str = "ms2m-system";
/// The name in every agent's certificate, whatever its address.
pub const SERVER_NAME: &str = "ms2m-agent.ms2m-system.svc";
/// Where agents are spoken to.
pub const PORT: u16 = 9443;
/// The query parameter of an upload that names the transfer.
pub const TRANSFER: &str = "transfer";

/// The container that a checkpoint is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Origin {
    /// Its pod's namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Its name.
    pub container: String,
}

/// Who may send a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Sender {
    /// Whoever bears this token, which was made for the one transfer.
    Token {
        /// Its digest, in hexadecimal digits.
        sha256: String,
    },
    /// A pod of the transfer Job, by the token that its kubelet gives it.
    Pod {
        /// Its namespace.
        namespace: String,
        /// How its name begins.
        prefix: String,
    },
}

/// `PUT /transfers/{transfer}`: a checkpoint is going to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expected {
    /// What it is of.
    pub origin: Origin,
    /// Who brings it.
    pub sender: Sender,
}

/// `POST /send`: bring an archive of this node to another node's agent.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SendOrder {
    /// The transfer.
    pub transfer: String,
    /// The archive, in the kubelet's folder.
    pub tar_path: String,
    /// What it is of.
    pub origin: Origin,
    /// The other agent, `https://address:port`.
    pub agent: String,
    /// The token that it expects.
    pub token: String,
}

/// `POST /registry-push`: push an archive of this node as an image.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PushOrder {
    /// The transfer.
    pub transfer: String,
    /// The archive, in the kubelet's folder.
    pub tar_path: String,
    /// What it is of.
    pub origin: Origin,
    /// Where to: repository and tag.
    pub image_ref: String,
    /// The registry's credentials: a docker config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_config: Option<String>,
}

/// `POST /local-load`: offer an archive of this node to this node's own runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadOrder {
    /// The transfer.
    pub transfer: String,
    /// The archive, in the kubelet's folder.
    pub tar_path: String,
    /// What it is of.
    pub origin: Origin,
}

/// `POST /forget`: a transfer is over. What it took in is removed, and the container's archives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForgetOrder {
    /// The transfer.
    pub transfer: String,
    /// Of what the archives are that go.
    pub origin: Origin,
    /// Older archives stay: somebody else has taken them. In seconds since 1970.
    pub since: i64,
}

/// A checkpoint that has arrived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrived {
    /// Its image, by digest, as the target node's runtime finds it.
    pub image: String,
    /// The image's digest.
    pub digest: String,
    /// Size of the archive in bytes.
    pub bytes: u64,
    /// The image that a restore needs on its node.
    pub base_image: String,
    /// How long it took.
    pub seconds: f64,
}

/// The answer to what is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was attempted, why not, what to do.
    pub error: String,
    /// Another try may help.
    #[serde(default)]
    pub passing: bool,
}

/// A transfer's name: what a path, a file name and an image's name can bear.
pub fn is_name(transfer: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&transfer.len())
        && transfer.bytes().all(fits)
        && !transfer.starts_with('-')
        && !transfer.ends_with('-')
}
