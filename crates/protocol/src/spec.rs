//! What the user asked for and what the operator was started with.

use serde::{Deserialize, Serialize};

/// How the target pod comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// A second pod beside the running source.
    ShadowPod,
    /// Source deleted first, re-created by its owner.
    Sequential,
}

/// How the checkpoint gets to the target node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    /// Through a container registry.
    #[default]
    Registry,
    /// From node to node.
    Direct,
}

/// When the target may take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplayMode {
    /// When it has caught up, or after `cutoff_ms` at the latest.
    Cutoff,
    /// Only when it has caught up.
    Drain,
    /// The source waits; nothing is replayed.
    Park,
    /// There is no queue, and nothing to hand over: nobody asks for it by name.
    Alone,
}

/// What happens to the identity of a `StatefulSet`'s pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentitySwap {
    /// The shadow pod keeps its own name.
    None,
    /// A second hop, timed as [`ReplayMode::Cutoff`].
    ExchangeFence,
    /// A second hop, timed as [`ReplayMode::Drain`].
    Cutoff,
}

/// A migration as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// UID of the migration object.
    pub uid: String,
    /// Pod to move.
    pub source_pod: String,
    /// Container to checkpoint; absent: the pod's first.
    pub container: Option<String>,
    /// Where to; absent: any schedulable node but the source's.
    pub target_node: Option<String>,
    /// Repository for the checkpoint image, without a tag.
    pub repository: Option<String>,
    /// Strategy; absent: by the pod's owner.
    pub strategy: Option<Strategy>,
    /// Way of the checkpoint.
    pub transfer: Transfer,
    /// Mode; absent: [`ReplayMode::Cutoff`].
    pub replay_mode: Option<ReplayMode>,
    /// Longest catch-up in milliseconds.
    pub cutoff_ms: u64,
    /// Identity swap.
    pub identity_swap: IdentitySwap,
    /// Pin the Deployment to the target node; absent: where it can be.
    pub pin: Option<bool>,
    /// The primary queue; absent: a migration without a broker.
    pub queue: Option<String>,
    /// The exchange the user says feeds the queue; empty when not said.
    pub exchange: String,
    /// The user wants it undone.
    pub abort: bool,
    /// The object is being deleted.
    pub deleted: bool,
}

/// What the operator was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long messages may wait at the switch, in milliseconds.
    pub pause_budget_ms: u64,
    /// How long deliveries trail an acknowledged unbind, in milliseconds, where messages wait for
    /// us (measured: up to 270 with thousands of messages and unconfirmed publishers; 1,700 on a
    /// busy machine).
    pub settle_ms: u64,
    /// How long they may trail it at all, in milliseconds, where nobody waits (measured: 5,000 under
    /// a flood that goes on).
    pub linger_ms: u64,
    /// How long `Q` must have been unfed and empty before the source leaves it, in milliseconds:
    /// what trails cut A into `Q` is older than what is in S1 already.
    pub ebb_ms: u64,
    /// How long both copies serve at the switch, in milliseconds. `EndpointSlices` are written in
    /// batches and again after a second when the controller's cache was stale, and kube-proxy
    /// waits a second between two updates, so that without it the source may be gone for a node
    /// that has not heard of the target.
    pub overlap_ms: u64,
    /// How long a migration in mode `Park` is expected to take, in milliseconds: a backlog that
    /// takes longer to work off is not replayed.
    pub park_pause_ms: u64,
    /// How long the broker's statistics may lag, in milliseconds.
    pub statistics_ms: u64,
    /// A source that stands still for its checkpoint goes on by itself when nobody has told it to for twice the
    /// predicted time and this, in milliseconds: until then another operator has taken the place of one that is
    /// gone. *[measured on the lab: in less than 5 s]*
    pub wake_ms: u64,
    /// So long a source stands still for a kubelet that can't be asked for its checkpoint, in milliseconds.
    pub kubelet_ms: u64,
    /// The operator's admission is there, which strategy Sequential needs.
    pub admission: bool,
    /// Deadlines of the waits.
    pub deadlines: Deadlines,
}

/// The longest each wait may take, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// Preflight: cluster, broker and registry have answered.
    pub preflight: u64,
    /// One step at the broker that needs no application.
    pub broker: u64,
    /// The source works off what lies in a queue.
    pub drain: u64,
    /// The application obeys an order.
    pub obey: u64,
    /// The slow proof.
    pub proof: u64,
    /// The kubelet's checkpoint.
    pub checkpoint: u64,
    /// The checkpoint's way to the registry.
    pub transfer: u64,
    /// The target runs and consumes.
    pub restore: u64,
    /// Somebody takes the place of a source that died.
    pub heir: u64,
    /// In mode `Drain`: the target catches up by at least one message.
    pub progress: u64,
    /// Grace on top of the cutoff for the target's readiness.
    pub switch: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pause_budget_ms: 200,
            settle_ms: 2_000,
            linger_ms: 5_000,
            ebb_ms: 100,
            overlap_ms: 1_500,
            park_pause_ms: 15_000,
            statistics_ms: 6_000,
            wake_ms: 8_000,
            kubelet_ms: 2_000,
            admission: false,
            deadlines: Deadlines {
                preflight: 15_000,
                broker: 30_000,
                drain: 600_000,
                obey: 30_000,
                proof: 60_000,
                checkpoint: 150_000,
                transfer: 600_000,
                restore: 120_000,
                heir: 60_000,
                progress: 30_000,
                switch: 120_000,
            },
        }
    }
}
