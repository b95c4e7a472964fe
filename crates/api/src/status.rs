//! What the operator reports. Every field is optional: a status written by another version must
//! not keep an object from being read.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a migration is, and what it cost.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatefulMigrationStatus {
    /// Pending, Checkpointing, Transferring, Restoring, Replaying, Finalizing, Completed or Failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// One sentence: what happens now, or how it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `Ready`, and `RolledBack` once something went wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The strategy in use, asked for or detected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// Node the pod comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_node: Option<String>,
    /// Pod that takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_pod: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node: Option<String>,
    /// The container that was checkpointed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// File name of the checkpoint archive.
    #[serde(rename = "checkpointID", skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,
    /// Its size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_bytes: Option<u64>,
    /// When the operator began, RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// When it ended, RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<String>,
    /// How long each phase took, as `1.33s`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phase_timings: BTreeMap<String, String>,
    /// The handoff at the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handoff: Option<HandoffStatus>,
    /// Owner of the pod, if a `StatefulSet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stateful_set_name: Option<String>,
    /// Owner of the pod's ReplicaSet, if a Deployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_name: Option<String>,
    /// Format of `state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_version: Option<u32>,
    /// The operator's own record, written before it acts. Not for editing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub state: Option<serde_json::Value>,
}

/// The handoff at the broker.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HandoffStatus {
    /// The mode in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Why this mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The queue's bindings before anything changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<String>,
    /// Messages that the target has yet to apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// How long no copy applied messages, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_millis: Option<u64>,
    /// The broker's evidence. It proves conservation at the broker under the conditions of
    /// `docs/handoff.md`; only a workload's own ledger proves application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// The broker's evidence.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// The two cuts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cuts: BTreeMap<String, CutProof>,
    /// What passed through each queue of the migration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub queues: BTreeMap<String, QueueProof>,
    /// How often the target's container was restarted before the commit point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_restarts: Option<u32>,
}

/// One cut.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CutProof {
    /// When, RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Messages ready in the queue that was cut off, when it was proved empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,
    /// Messages unacknowledged then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unacked: Option<u64>,
}

/// What passed through one queue.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QueueProof {
    /// Messages routed to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routed: Option<u64>,
    /// Messages acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<u64>,
    /// Messages delivered more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redelivered: Option<u64>,
}

fn anything(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
