//! The truth: how far a migration is, and what it found.
//!
//! Every field may be absent and text is plain text, so that an object written by another version
//! still reads.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How far the migration is.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulMigrationStatus {
    /// Pending, Checkpointing, Transferring, Restoring, Replaying, Finalizing, Completed or Failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,

    /// What the migration does, or why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// Ready, and RolledBack once something went wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,

    /// The strategy in use: ShadowPod or Sequential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,

    /// The node that the pod comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_node: Option<String>,

    /// The pod that takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_pod: Option<String>,

    /// The node that the pod goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node: Option<String>,

    /// The container that is checkpointed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,

    /// The owning StatefulSet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stateful_set_name: Option<String>,

    /// The owning Deployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_name: Option<String>,

    /// The checkpoint archive's file name.
    #[serde(rename = "checkpointID", skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,

    /// The checkpoint archive's size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_bytes: Option<u64>,

    /// Which operator wrote this: one that led later has a higher number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_generation: Option<i32>,

    /// When the migration began: RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,

    /// When the migration ended: RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<String>,

    /// How long each phase took, such as "1.33s".
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub phase_timings: BTreeMap<String, String>,

    /// How the messages were handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handoff: Option<HandoffStatus>,

    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Version of the format of state. An operator that finds a newer one waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_version: Option<u32>,

    /// The operator's own record, written before it acts. Not for editing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub state: Option<serde_json::Value>,
}

/// A list with one condition of each type, so that server-side apply merges by type.
fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Vec::<Condition>::json_schema(generator);
    schema.insert("x-kubernetes-list-type".to_owned(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".to_owned(), vec!["type"].into());
    schema
}

/// An object that the API server keeps as it is.
fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// How the messages were handed over.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct HandoffStatus {
    /// The mode in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,

    /// Why this mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// The queue's bindings before anything was changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<String>,

    /// Messages that the target has not taken yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,

    /// How long the source stood still, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_millis: Option<u64>,

    /// Without a queue: how long the source went on after its checkpoint, in milliseconds. What it
    /// did then is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreplayed_millis: Option<u64>,

    /// What the broker showed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// What the broker showed. It proves that the broker conserved the messages; that the application
/// applied them, only the application's own ledger can prove.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Proof {
    /// The cuts by name (A, B): the queue that was left behind was empty.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cuts: BTreeMap<String, CutProof>,

    /// The queues by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub queues: BTreeMap<String, QueueProof>,

    /// How often the target's container was restarted before it took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_restarts: Option<u32>,
}

/// What the broker showed at a cut.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct CutProof {
    /// When: RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,

    /// Messages that waited in the queue left behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,

    /// Messages of that queue that were delivered but not acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unacked: Option<u64>,
}

/// What the broker counted at a queue.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueProof {
    /// Messages routed to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routed: Option<u64>,

    /// Messages acknowledged by consumers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<u64>,

    /// Messages delivered again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redelivered: Option<u64>,
}
