//! The wish: what to move, where to, and how.

use std::fmt;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;
use crate::status::StatefulMigrationStatus;

/// What to move, where to, and how.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "migration.ms2m.io",
    version = "v1alpha1",
    kind = "StatefulMigration",
    plural = "statefulmigrations",
    shortname = "smig",
    namespaced,
    status = "StatefulMigrationStatus",
    derive = "PartialEq",
    doc = "Moves a running pod to another node with its memory, while messages keep coming.",
    validation = rules::migration_name(),
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.sourcePod"),
    printcolumn(name = "Target node", type_ = "string", json_path = ".status.targetNode"),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".status.strategy"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.handoff.lag"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[x_kube(
    validation = rules::unchanged(),
    validation = rules::repository_given(),
    validation = rules::swap_with_shadow_pod(),
    validation = rules::replay_mode_with_queue(),
    validation = rules::shadow_pod_with_queue()
)]
#[serde(rename_all = "camelCase")]
pub struct StatefulMigrationSpec {
    /// The pod to move, in the same namespace.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::pod_name())]
    pub source_pod: String,

    /// The container to checkpoint. Default: the pod's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::container_name())]
    pub container_name: Option<String>,

    /// The node to move to. Default: any schedulable node but the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::node_name())]
    pub target_node: Option<String>,

    /// Repository for the checkpoint image: host and path, without scheme, tag and digest. Required
    /// for transferMode Registry. The image holds the container's memory, secrets included: treat
    /// the repository like a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    #[x_kube(
        validation = rules::repository_form()[0].clone(),
        validation = rules::repository_form()[1].clone(),
        validation = rules::repository_form()[2].clone(),
        validation = rules::repository_form()[3].clone()
    )]
    pub checkpoint_image_repository: Option<String>,

    /// How the target pod comes to be. Default: by the pod's owner, Sequential for a StatefulSet and
    /// ShadowPod for all others. The one chosen is written to the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_strategy: Option<MigrationStrategy>,

    /// How the checkpoint gets to the target node.
    #[serde(default)]
    pub transfer_mode: TransferMode,

    /// When the target may take over. Default: chosen for the workload; the choice and its reason
    /// are written to the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_mode: Option<ReplayMode>,

    /// The longest catch-up in seconds; then the target takes over with what it has not applied yet
    /// still in its queue. Nothing is dropped.
    #[serde(default = "default_cutoff")]
    #[schemars(range(max = 2_147_483_647))]
    #[x_kube(validation = rules::cutoff())]
    pub replay_cutoff_seconds: u32,

    /// Whether the pod of a StatefulSet gets its old name back after ShadowPod.
    #[serde(default)]
    pub identity_swap_mode: IdentitySwapMode,

    /// The queue that the pod consumes. Leave it out for a StatefulSet's pod that consumes none:
    /// what it does between its checkpoint and its end is lost then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_queue_config: Option<MessageQueueConfig>,

    /// Pin the pod's Deployment to the target node: its pod template gets a required node affinity,
    /// and the moved pod keeps its memory. Default: true for the only pod of a Deployment. Where it
    /// would restart somebody it is left out, and an event says why: with more than one replica, with
    /// a Deployment that is paused or in the middle of a rollout. Other pods have no template to pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_to_target_node: Option<bool>,

    /// Roll back. Possible until the source has been deleted.
    #[serde(default)]
    pub abort: bool,

    /// Delete this object so many seconds after it has finished. Default: keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2_147_483_647))]
    pub ttl_seconds_after_finished: Option<u32>,
}

fn default_cutoff() -> u32 {
    120
}

/// How the target pod comes to be. Default: by the pod's owner, Sequential for a StatefulSet and
/// ShadowPod for all others. The one chosen is written to the status.
// An optional enum's description in the schema is the enum's own.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationStrategy {
    /// A second pod beside the running source.
    ShadowPod,
    /// The source is deleted and re-created by its owner.
    Sequential,
}

/// How the checkpoint gets to the target node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TransferMode {
    /// As an image in a registry.
    #[default]
    Registry,
    /// From node to node, through the agent.
    Direct,
}

/// When the target may take over. Default: chosen for the workload; the choice and its reason are
/// written to the status.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayMode {
    /// Once it has caught up, after `replayCutoffSeconds` at the latest.
    Cutoff,
    /// Only once it has caught up.
    Drain,
    /// The source waits meanwhile; nothing is replayed.
    Park,
}

/// Whether a `StatefulSet`'s pod gets its old name back.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IdentitySwapMode {
    /// It keeps the shadow's name.
    #[default]
    None,
    /// A second move gives it back, timed as `replayMode: Cutoff`.
    ExchangeFence,
    /// A second move gives it back, timed as `replayMode: Drain`.
    Cutoff,
}

/// The queue that the pod consumes and the broker that has it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, PartialEq, Eq)]
#[x_kube(validation = rules::broker_given())]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueConfig {
    /// The queue that the application consumes. The names of the side queues are made from it, so it
    /// may have 200 characters of AMQP's 255.
    #[schemars(length(max = 200))]
    #[x_kube(validation = rules::queue_name())]
    pub queue_name: String,

    /// The broker: amqp:// or amqps://, with the vhost as its path. Credentials belong in a Secret
    /// (brokerSecretRef).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = rules::broker_url())]
    pub broker_url: Option<String>,

    /// The exchange that feeds the queue.
    #[serde(default)]
    #[schemars(length(max = 255))]
    pub exchange_name: String,

    /// The key that the queue is bound with.
    #[serde(default)]
    #[schemars(length(max = 255))]
    pub routing_key: String,

    /// A Secret of this namespace with the broker's URL, credentials included; it takes precedence
    /// over brokerUrl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_secret_ref: Option<SecretKeyRef>,

    /// The broker's management API. Default: the broker's host, port 15672, the same credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = rules::management_url())]
    pub management_url: Option<String>,
}

/// One value of a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::secret_name())]
    pub name: String,

    /// The key in the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = rules::secret_key())]
    pub key: String,
}

impl MessageQueueConfig {
    /// Whether a URL in the object itself has a password, which everyone who may read the object
    /// can see.
    pub fn has_password(&self) -> bool {
        [&self.broker_url, &self.management_url]
            .into_iter()
            .flatten()
            .any(|url| credentials(url).is_some_and(|found| found.contains(':')))
    }
}

/// What stands before the `@` of a URL.
fn credentials(url: &str) -> Option<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.rsplit_once('@').map(|(credentials, _)| credentials)
}

/// A URL for people: without its credentials.
fn redacted(url: &str) -> String {
    match credentials(url) {
        Some(found) => url.replacen(found, "***", 1),
        None => url.to_owned(),
    }
}

/// Never shows a password.
impl fmt::Debug for MessageQueueConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            queue_name,
            broker_url,
            exchange_name,
            routing_key,
            broker_secret_ref,
            management_url,
        } = self;
        f.debug_struct("MessageQueueConfig")
            .field("queue_name", queue_name)
            .field("broker_url", &broker_url.as_deref().map(redacted))
            .field("exchange_name", exchange_name)
            .field("routing_key", routing_key)
            .field("broker_secret_ref", broker_secret_ref)
            .field("management_url", &management_url.as_deref().map(redacted))
            .finish()
    }
}
