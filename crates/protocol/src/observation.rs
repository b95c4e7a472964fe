//! What the world looks like now, as far as the present state needs to know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::broker::{Binding, Consumer, Counts, Emptiness, Survey};
use crate::freeze::Liveness;
use crate::pending::Called;
use crate::phase::{Evidence, Plan};
use crate::time::Time;

/// Who owns a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// Nobody.
    Bare,
    /// A ReplicaSet, and the Deployment that owns it.
    Deployment {
        /// Name of the ReplicaSet.
        replica_set: String,
        /// Name of the Deployment.
        deployment: String,
    },
    /// A StatefulSet.
    StatefulSet(String),
    /// Something this version can't move.
    Other {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
}

/// A pod as the API server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its node, once scheduled.
    pub node: Option<String>,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// Phase `Running`.
    pub running: bool,
    /// Phase `Failed` or `Succeeded`.
    pub ended: bool,
    /// Condition `Ready`.
    pub ready: bool,
    /// Condition `ContainersReady`: probes pass, readiness gates left out.
    pub containers_ready: bool,
    /// Has a deletion timestamp.
    pub terminating: bool,
    /// Its owner.
    pub owner: Owner,
    /// Container names, in order.
    pub containers: Vec<String>,
    /// The containers that have a status.
    pub statuses: BTreeMap<String, Container>,
    /// What makes it impossible to move, a sentence each.
    pub problems: Vec<String>,
    /// The application returns to the queue it was told to consume when it has lost its connection,
    /// the user says.
    pub remembers: bool,
    /// It has left its StatefulSet, and bears another name since.
    pub has_left: bool,
    /// The liveness probe of the container to checkpoint, if it has one.
    pub liveness: Option<Liveness>,
    /// The name it had before its last move, where its own does not tell.
    pub before: Option<String>,
    /// What keeps it from starting (a container's waiting reason and message).
    pub waiting: Option<String>,
    /// It belongs to this migration (by its label).
    pub ours: bool,
}

impl Pod {
    /// What it is called, if its name is `name`.
    pub fn called<'a>(&'a self, name: &'a str) -> Called<'a> {
        Called { name, has_left: self.has_left, before: self.before.as_deref() }
    }
}

/// A container as the API server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Container ID; it changes when the container is restarted.
    pub id: String,
    /// Running now.
    pub running: bool,
    /// Its process has begun to run, whether or not it still does.
    pub started: bool,
    /// How often it was restarted.
    pub restarts: u32,
    /// The image as the pod's spec names it.
    pub image: String,
}

/// A node as the API server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Takes new pods.
    pub schedulable: bool,
    /// Condition `Ready`.
    pub ready: bool,
    /// What keeps it from taking a copy of the source, a sentence each.
    pub problems: Vec<String>,
    /// As many migrations come to it as may at once.
    pub full: bool,
}

/// A StatefulSet, as far as it says which of its pods goes when it gets smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodsOfSet {
    /// The ordinal of its first pod.
    pub first: u32,
    /// How many pods it is to have.
    pub replicas: u32,
    /// It deletes the volume claims of the pods that leave it.
    pub deletes_claims: bool,
}

/// A Deployment, as far as it says whether its template can be changed and nobody restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollout {
    /// How many pods it is to have.
    pub replicas: u32,
    /// Its user has paused it.
    pub paused: bool,
    /// Its template is that of the source's ReplicaSet, and no other pod is left.
    pub complete: bool,
}

/// A volume claim of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// It can be used on several nodes at once.
    pub shared: bool,
}

/// What only the preflight looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// A pod with the target's name that isn't ours.
    pub name_taken: bool,
    /// Whether the registry answers; absent while not asked.
    pub registry: Option<Result<(), String>>,
    /// The broker's survey of the queue, taken under its lock; absent while not taken.
    pub survey: Option<Survey>,
    /// The StatefulSet that owns the source; absent while not read, or where there is none.
    pub set: Option<PodsOfSet>,
    /// The Deployment that owns the source; absent while not read, or where there is none.
    pub rollout: Option<Rollout>,
    /// The source's volume claims; absent while not read.
    pub claims: Option<Vec<Claim>>,
    /// Whether the API server would take a copy of the source, with all its mounts, or why not;
    /// absent while not asked.
    pub copy: Option<Result<(), String>>,
    /// Whether the source, its node and the target's can do what a move takes of them, or what not;
    /// absent while not looked at.
    pub checks: Option<Result<(), String>>,
    /// Memory of the container to checkpoint in bytes; absent where its kubelet does not say.
    pub memory_bytes: Option<u64>,
    /// Replicas of the ReplicaSet that are not ready.
    pub unready_siblings: u32,
}

/// The transfer Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// At work.
    Running,
    /// The image is in the registry, named by its digest.
    Done {
        /// Reference of the checkpoint image.
        image: String,
        /// Size of the archive in bytes.
        bytes: u64,
    },
    /// Given up.
    Failed(String),
}

/// An image on its way to the target node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrePull {
    /// Being pulled.
    Running,
    /// On the node.
    Done,
    /// Can't be pulled.
    Failed(String),
}

/// A checkpoint archive on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// Absolute path on the node.
    pub path: String,
    /// How long the kubelet took, in milliseconds.
    pub millis: u64,
}

/// The broker's part. Absent values were not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerView {
    /// Counts of `Q`.
    pub primary: Option<Counts>,
    /// Counts of S1.
    pub s1: Option<Counts>,
    /// Counts of S2.
    pub s2: Option<Counts>,
    /// Bindings of `Q`.
    pub bindings: Option<Vec<Binding>>,
    /// Counts of the park queue.
    pub park: Option<Counts>,
    /// Counts of the second park queue.
    pub park2: Option<Counts>,
    /// Counts of the queue in which the order waits that wakes the source.
    pub wake: Option<Counts>,
    /// Counts of the target's control queue.
    pub target_control: Option<Counts>,
    /// Consumers of `Q` by name, where it has several.
    pub consumers: Option<Vec<Consumer>>,
    /// The proof that nothing of `Q` is delivered and not acknowledged by who has left it.
    pub primary_quiet: Option<Emptiness>,
    /// The proof that `Q` holds nothing.
    pub primary_empty: Option<Emptiness>,
    /// The proof that S1 holds nothing.
    pub s1_empty: Option<Emptiness>,
    /// Whether all of [`crate::phase::Plan::connections`] still live.
    pub connected: Option<bool>,
    /// What the queues have seen since they exist.
    pub totals: Option<Evidence>,
}

impl BrokerView {
    /// Whether `pod` consumes `Q`: the count tells where there is nobody else, the address where others
    /// come and go.
    pub(crate) fn consumed_by(&self, plan: &Plan, pod: Option<&Pod>) -> bool {
        if !plan.shared() {
            return self.primary.is_some_and(|counts| counts.consumers >= plan.consumers);
        }
        let ip = pod.and_then(|pod| pod.ip.as_deref());
        let all = self.consumers.iter().flatten();
        ip.is_some_and(|ip| all.into_iter().any(|consumer| consumer.is_at(ip)))
    }
}

/// The pod, or the new run of its container, that took the place of a source that died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heir {
    /// The pod's name.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// The container's ID.
    pub container_id: String,
    /// Its control queue exists.
    pub listens: bool,
}

/// Something that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// One word, `CamelCase`.
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// Another try can't help.
    pub permanent: bool,
}

/// Whether it is a migration's turn. Only phase Pending waits for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// It is, since then.
    Since(Time),
    /// Others come first; the text says who, or how many.
    Waits(String),
}

impl Default for Turn {
    fn default() -> Self {
        Self::Since(Time::default())
    }
}

/// The world now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// Whether it is its turn.
    pub turn: Turn,
    /// When this operator had carried out all effects of the present step; absent while it hasn't.
    pub acted: Option<Time>,
    /// This operator itself has gone into the present step: nobody else has acted in it.
    pub own: bool,
    /// What last went wrong in the present step, if it still stands.
    pub trouble: Option<Trouble>,
    /// The source pod; absent when it does not exist.
    pub source: Option<Pod>,
    /// In a second hop: the pod that stands by under the target's name.
    pub standby: Option<Pod>,
    /// Who took the place of a source that died; absent while nobody did.
    pub heir: Option<Heir>,
    /// The target pod; absent when it does not exist.
    pub target: Option<Pod>,
    /// The ReplicaSet that pins the target to its node exists: the source's may be scaled to 0 at any
    /// time. Only looked at while the source is about to go.
    pub pinned: bool,
    /// What the preflight looks at.
    pub preflight: Option<Preflight>,
    /// The transfer Job.
    pub job: Option<Job>,
    /// The pull of the workload's own image on the target node.
    pub prepull: Option<PrePull>,
    /// The pull of the checkpoint on the target node.
    pub pulled: Option<PrePull>,
    /// The kubelet's answer, in the step that asks for it.
    pub archive: Option<Archive>,
    /// The broker; absent when it can't be reached, and without anything in it where there is none.
    pub broker: Option<BrokerView>,
}

/// What a state needs to know of the broker, so that nothing else is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interest {
    /// The preflight's facts.
    pub preflight: bool,
    /// Counts of `Q`.
    pub primary: bool,
    /// Counts of S1.
    pub s1: bool,
    /// Counts of S2.
    pub s2: bool,
    /// Bindings of `Q`.
    pub bindings: bool,
    /// Counts of the park queue.
    pub park: bool,
    /// Counts of the second park queue.
    pub park2: bool,
    /// Counts of the queue in which the order waits that wakes the source.
    pub wake: bool,
    /// Counts of the target's control queue.
    pub target_control: bool,
    /// Consumers of `Q` by name.
    pub consumers: bool,
    /// The proof that nothing of `Q` is delivered and not acknowledged by who has left it.
    pub primary_quiet: bool,
    /// The proof that `Q` holds nothing.
    pub primary_empty: bool,
    /// The proof that S1 holds nothing.
    pub s1_empty: bool,
    /// Whether the source's connection still lives.
    pub connected: bool,
    /// What the queues have seen since they exist.
    pub totals: bool,
    /// Who took the source's place.
    pub heir: bool,
    /// The source as it is now, not as it was last heard of: it is about to go.
    pub going: bool,
    /// The transfer Job.
    pub job: bool,
    /// The pull of the workload's own image on the target node.
    pub prepull: bool,
    /// The pull of the checkpoint on the target node.
    pub pulled: bool,
}

impl Interest {
    /// What is left of it where there is no broker to ask.
    #[must_use]
    pub(crate) fn without_broker(self) -> Self {
        let Self { preflight, heir, going, job, prepull, pulled, .. } = self;
        Self { preflight, heir, going, job, prepull, pulled, ..Self::default() }
    }
}
