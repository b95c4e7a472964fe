//! The facts that phases carry: what was found out, and what has become true on the way.

use serde::{Deserialize, Serialize};

use crate::broker::{Binding, Totals};
use crate::decide::source;
use crate::names::Names;
use crate::observation::{Archive, Observation, Owner};
use crate::spec::{ReplayMode, Strategy, Transfer};
use crate::time::Time;

/// Why a migration did not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One word, `CamelCase`.
    pub reason: String,
    /// What was attempted, on which object, why it failed, what to do.
    pub message: String,
}

impl Failure {
    /// A failure with this reason and sentence.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }
}

/// All that was found out before anything was touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Names of the broker objects.
    pub names: Names,
    /// The pod to move.
    pub source_pod: String,
    /// Its UID: another pod of that name is not the source.
    pub source_uid: String,
    /// Its container's ID: a restarted container is not the source either.
    pub source_container_id: String,
    /// Its connection to the broker: as long as that lives, it consumes what it was told to.
    pub source_connection: String,
    /// It returns to the queue it was told to consume when it has lost its connection, the user says.
    pub remembers: bool,
    /// Its node.
    pub source_node: String,
    /// The container to checkpoint.
    pub container: String,
    /// That container's own image.
    pub base_image: String,
    /// The pod to be.
    pub target_pod: String,
    /// Its node.
    pub target_node: String,
    /// The source's owner.
    pub owner: Owner,
    /// Explicit or by owner.
    pub strategy: Strategy,
    /// How many pods the source's StatefulSet had, if the copy leaves it: it has one less then.
    #[serde(default)]
    pub replicas: Option<u32>,
    /// How the checkpoint gets to the target node.
    #[serde(default)]
    pub transfer: Transfer,
    /// Repository of the checkpoint image; empty where it goes from node to node.
    pub repository: String,
    /// How many consumers `Q` had, the source among them.
    pub consumers: u32,
    /// The bindings of `Q` before anything changed.
    pub bindings: Vec<Binding>,
    /// What `Q` had seen before anything changed.
    pub before: Totals,
    /// When the target may take over.
    pub mode: ReplayMode,
    /// Why this mode.
    pub mode_reason: String,
    /// Longest catch-up in milliseconds.
    pub cutoff_ms: u64,
    /// After so many milliseconds a source that stands still for its checkpoint goes on by itself, should
    /// nobody tell it to; 0: never.
    #[serde(default)]
    pub wake_after_ms: u64,
    /// Which hop of an identity swap this is.
    #[serde(default)]
    pub hop: Hop,
    /// What becomes of the Deployment's template.
    #[serde(default)]
    pub pin: Pin,
}

impl Plan {
    /// What the first hop has left in place, if this is the second.
    pub fn base(&self) -> Option<&Base> {
        match &self.hop {
            Hop::Second(base) => Some(base),
            Hop::Only | Hop::First { .. } => None,
        }
    }

    /// The first hop, while its source stands by.
    pub fn standby(&self) -> Option<&Plan> {
        self.base().filter(|base| !base.vacated).map(|base| &base.plan)
    }

    /// What the migration as a whole began with.
    pub fn origin(&self) -> &Plan {
        self.base().map_or(self, |base| &base.plan)
    }

    /// Where the checkpoint goes, in words.
    pub fn goal(&self) -> String {
        match self.transfer {
            Transfer::Registry => format!("repository {}", self.repository),
            Transfer::Direct => format!("node {}", self.target_node),
        }
    }

    /// Whether there is no queue: nothing is asked of a broker, and nobody is told anything.
    pub fn alone(&self) -> bool {
        self.mode == ReplayMode::Alone
    }

    /// Whether the copy bears its source's name in the end, so that admission keeps it.
    pub fn keeps_name(&self) -> bool {
        self.strategy == Strategy::Sequential || self.hop != Hop::Only
    }

    /// Other pods consume `Q`, too: they stay, and who is meant is told by its address.
    pub fn shared(&self) -> bool {
        self.consumers > 1
    }

    /// The connections that must not break, or whoever loses one may go to `Q` by habit.
    pub fn connections(&self) -> impl Iterator<Item = &str> {
        let plans = std::iter::once(self).chain(self.standby());
        plans.map(|plan| plan.source_connection.as_str())
    }
}

/// Whether the Deployment of the source is pinned to the target node at the switch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pin {
    /// There is nothing to pin, or it is not wanted.
    #[default]
    No,
    /// Its template gets an affinity for the node, and the target is the new template's pod.
    Yes,
    /// It can't be without a restart; the pod moves all the same.
    Skipped {
        /// The sentence for the user.
        why: String,
        /// The user has asked for it.
        asked: bool,
    },
}

/// Which of the hops of an identity swap a plan is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hop {
    /// There is no swap.
    #[default]
    Only,
    /// The first: to a pod of another name.
    First {
        /// When the target of the second may take over.
        then: ReplayMode,
    },
    /// The second: from there to the owner's next pod of the old name.
    Second(Box<Base>),
}

/// What a second hop stands on: the first, carried out up to its switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its plan.
    pub plan: Plan,
    /// Its checkpoint.
    pub taken: Taken,
    /// That checkpoint's image.
    pub image: Image,
    /// Its target, the second hop's source.
    pub target: Incarnation,
    /// Its source has made room: only forward is left.
    pub vacated: bool,
}

/// The instants of the two cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cuts {
    /// Everything new goes to S1.
    pub a: Time,
    /// Everything new goes to `Q` and S2.
    pub b: Time,
    /// The order was laid out that wakes the source, no sooner than then; absent: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub armed: Option<Time>,
}

/// What is true once the checkpoint is taken and the source is where it waits for its end: on S2,
/// or parked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taken {
    /// The cuts; absent in mode `Park`, and without a queue.
    pub cuts: Option<Cuts>,
    /// Without a queue: the last moment of which the checkpoint is known to hold everything.
    #[serde(default)]
    pub whole_until: Option<Time>,
    /// The checkpoint.
    pub archive: Archive,
    /// How long the source stood still, in milliseconds; in mode `Park` until it was copied: it
    /// stands still to its end.
    pub pause_ms: u64,
}

/// The checkpoint as an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Reference by digest.
    pub reference: String,
    /// Size of the archive in bytes.
    pub bytes: u64,
}

/// One run of the target's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incarnation {
    /// The pod's UID.
    pub uid: String,
    /// The container's ID.
    pub container_id: String,
    /// Messages per second that have piled up in `Q` since cut B: a lower bound of its feed.
    pub feed_per_second: u64,
}

/// What the broker counted at the migration's queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// At `Q`, since the migration began.
    pub primary: Totals,
    /// At S1.
    pub s1: Totals,
    /// At S2.
    pub s2: Totals,
}

/// How far the target had caught up when it was last written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Messages to go.
    pub lag: u64,
    /// When.
    pub at: Time,
}

/// The commit point: the source was proved gone, or, in mode `Park`, the target has read that it
/// is to go on. Before it everything can be undone, after it there is only forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    at: Time,
}

impl Commit {
    /// The commit, if the source of `plan` is gone.
    pub(crate) fn proved(plan: &Plan, seen: &Observation, now: Time) -> Option<Self> {
        source(plan, seen).is_none().then_some(Self { at: now })
    }

    /// The commit, if the target has obeyed its order: it consumes `Q`, or has ended and its order
    /// has not come back. An order that only was delivered may be in the hands of a process whose
    /// node has lost power, until the broker misses its heartbeats.
    pub(crate) fn obeyed(plan: &Plan, seen: &Observation, now: Time) -> Option<Self> {
        let broker = seen.broker.as_ref()?;
        let order = broker.target_control.filter(|order| order.ready == 0)?;
        let back = broker.consumed_by(plan, seen.target.as_ref());
        let ended = seen.target.as_ref().is_none_or(|target| target.ended);
        (back || ended && order.consumers == 0).then_some(Self { at: now })
    }

    /// The commit, if the source's process is gone and nobody will take its place.
    pub(crate) fn inherited(now: Time) -> Self {
        Self { at: now }
    }

    /// When it was seen.
    pub fn at(self) -> Time {
        self.at
    }
}

/// One of the attempts to have the owner's next pod restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When there was no way back any more; absent while the source of a second hop lives.
    pub commit: Option<Commit>,
    /// How many have failed before.
    pub failed: u32,
}

impl Attempt {
    /// The nodes take turns: the source's had everything the workload needs. What went from node to node
    /// is on the target's only.
    pub(crate) fn node(self, plan: &Plan) -> &str {
        let first = self.failed.is_multiple_of(2) || plan.transfer == Transfer::Direct;
        if first { &plan.target_node } else { &plan.source_node }
    }
}
