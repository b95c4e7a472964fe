//! What a user asks for.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::StatefulMigrationStatus;

/// Moves a running, stateful pod to another node without losing a message.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "migration.ms2m.io",
    version = "v1alpha1",
    kind = "StatefulMigration",
    plural = "statefulmigrations",
    shortname = "smig",
    namespaced,
    derive = "PartialEq",
    status = "StatefulMigrationStatus",
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.sourcePod"),
    printcolumn(name = "Target node", type_ = "string", json_path = ".status.targetNode"),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".status.strategy"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.handoff.lag"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    )
)]
#[x_kube(
    validation = Rule::new(
        "self.transferMode != 'Registry' || (has(self.checkpointImageRepository) && size(self.checkpointImageRepository) > 0)"
    ).message("transferMode Registry needs checkpointImageRepository, for example registry.example/checkpoints"),
    validation = Rule::new(
        "self.identitySwapMode == 'None' || (has(self.migrationStrategy) && self.migrationStrategy == 'ShadowPod')"
    ).message("identitySwapMode other than None needs migrationStrategy: ShadowPod"),
    validation = Rule::new(
        "self.sourcePod == oldSelf.sourcePod && (has(self.targetNode) ? has(oldSelf.targetNode) && self.targetNode == oldSelf.targetNode : !has(oldSelf.targetNode)) && (has(self.containerName) ? has(oldSelf.containerName) && self.containerName == oldSelf.containerName : !has(oldSelf.containerName)) && (has(self.checkpointImageRepository) ? has(oldSelf.checkpointImageRepository) && self.checkpointImageRepository == oldSelf.checkpointImageRepository : !has(oldSelf.checkpointImageRepository)) && self.transferMode == oldSelf.transferMode && self.identitySwapMode == oldSelf.identitySwapMode && (has(self.messageQueueConfig) ? has(oldSelf.messageQueueConfig) && self.messageQueueConfig == oldSelf.messageQueueConfig : !has(oldSelf.messageQueueConfig))"
    ).message("a migration can't be changed once created, but for abort and ttlSecondsAfterFinished; create another one")
)]
#[serde(rename_all = "camelCase")]
pub struct StatefulMigrationSpec {
    /// Pod to move, in the same namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub source_pod: String,
    /// Container to checkpoint; absent: the pod's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container_name: Option<String>,
    /// Node to move to; absent: any schedulable node but the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub target_node: Option<String>,
    /// Repository for the checkpoint image, without scheme, tag or digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    #[x_kube(validation = Rule::new("!self.contains('://') && !self.contains('@') && !self.matches(':[^/]*$')")
        .message("name a repository without scheme, tag or digest, for example registry.example/checkpoints"))]
    pub checkpoint_image_repository: Option<String>,
    /// How the target pod comes to be; absent: by owner (`StatefulSet` → `Sequential`, else
    /// `ShadowPod`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_strategy: Option<MigrationStrategy>,
    /// How the checkpoint gets to the target node.
    #[serde(default)]
    pub transfer_mode: TransferMode,
    /// When the target may take over; absent: `Cutoff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_mode: Option<ReplayMode>,
    /// The longest catch-up, in seconds.
    #[serde(default = "default_cutoff")]
    #[schemars(range(min = 1, max = 86_400))]
    pub replay_cutoff_seconds: u32,
    /// Whether a `StatefulSet`'s pod gets its own name back by a second hop.
    #[serde(default)]
    pub identity_swap_mode: IdentitySwapMode,
    /// The broker and the queue that the pod consumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_queue_config: Option<MessageQueueConfig>,
    /// Pin a Deployment with one replica to the target node afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_to_target_node: Option<bool>,
    /// Set to true to roll back.
    #[serde(default)]
    pub abort: bool,
    /// Delete the finished object after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<u32>,
}

fn default_cutoff() -> u32 {
    120
}

/// How the target pod comes to be.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationStrategy {
    /// A second pod beside the running source.
    ShadowPod,
    /// Source deleted first, re-created by its owner.
    Sequential,
}

/// How the checkpoint gets to the target node.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransferMode {
    /// Through a container registry.
    #[default]
    Registry,
    /// From node to node.
    Direct,
}

/// When the target may take over.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayMode {
    /// When it has caught up, or after `replayCutoffSeconds`.
    Cutoff,
    /// Only when it has caught up.
    Drain,
    /// The source waits; nothing is replayed.
    Park,
}

/// Whether a `StatefulSet`'s pod gets its own name back.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdentitySwapMode {
    /// The shadow pod keeps its name.
    #[default]
    None,
    /// A second hop, timed as replay mode `Cutoff`.
    ExchangeFence,
    /// A second hop, timed as replay mode `Drain`.
    Cutoff,
}

/// The broker and the queue.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[x_kube(
    validation = Rule::new("has(self.brokerUrl) || has(self.brokerSecretRef)")
        .message("name the broker by brokerUrl or, with credentials, by brokerSecretRef")
)]
#[serde(rename_all = "camelCase")]
pub struct MessageQueueConfig {
    /// The queue that the pod consumes.
    #[schemars(length(min = 1, max = 200))]
    pub queue_name: String,
    /// `amqp://` or `amqps://` URL; a password in it works, but a Secret is the place for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^amqps?://"))]
    pub broker_url: Option<String>,
    /// Secret with the broker's URL, credentials included; it goes before `brokerUrl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_secret_ref: Option<SecretKeyRef>,
    /// Base URL of the management API; absent: the broker's host, port 15672, same credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://"))]
    pub management_url: Option<String>,
    /// The exchange that feeds the queue.
    #[serde(default)]
    #[schemars(length(max = 255))]
    pub exchange_name: String,
    /// The routing key of the binding.
    #[serde(default)]
    #[schemars(length(max = 255))]
    pub routing_key: String,
}

/// One key of a Secret in the migration's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}
