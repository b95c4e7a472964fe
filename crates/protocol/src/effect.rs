//! What a state wants done. Every effect is idempotent: done twice, it is done once.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::broker::{Order, Topology};
use crate::phase::State;

/// One command to the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// Take the migration's lock: on the queue, or, where there is none, on the pod's name.
    Lock,
    /// Change the broker's topology.
    Topology(Topology),
    /// Tell an application what to do.
    Order(Order),
    /// Ask the source's kubelet for a checkpoint.
    Checkpoint,
    /// Have the workload's own image pulled on the target node: a restore needs it there.
    PrePull,
    /// Have the checkpoint pulled on the target node, without restoring it.
    PullCheckpoint,
    /// Delete what [`Effect::PrePull`] and [`Effect::PullCheckpoint`] made.
    DeletePrePull,
    /// Create the transfer Job.
    CreateJob,
    /// Delete the transfer Job and its pod.
    DeleteJob,
    /// Create the target pod.
    CreateTarget,
    /// Delete the target pod without grace.
    DeleteTarget,
    /// Set the target's handoff readiness gate: it is Ready when its probes pass.
    OpenGate,
    /// Give the target the labels by which Services find the source, but not its owner's own.
    Announce,
    /// Make the source the ReplicaSet's first choice for deletion.
    PreferSource,
    /// Undo [`Effect::PreferSource`].
    UnpreferSource,
    /// Give the target all of the source's labels: the ReplicaSet finds it.
    Adopt,
    /// Give the source's Deployment a template with an affinity for the target node, and the target
    /// the labels and the ReplicaSet of that template: the source's ReplicaSet goes to 0. Where that
    /// would restart anybody by now: as [`Effect::PreferSource`] and [`Effect::Adopt`].
    Pin,
    /// Undo [`Effect::Pin`]: the template of the source's ReplicaSet again.
    Unpin,
    /// Make the source's StatefulSet smaller by one pod, which is the source.
    ScaleDown {
        /// How many pods it had before.
        from: u32,
    },
    /// Undo [`Effect::ScaleDown`].
    ScaleUp {
        /// How many pods it had before.
        to: u32,
    },
    /// Delete the source pod.
    DeleteSource,
    /// Delete the source pod with the shortest grace that its kubelet still confirms: its state is
    /// safe, and nobody waits for it to say goodbye.
    Vacate,
    /// In a second hop: delete the pod that stands by under the target's name, as
    /// [`Effect::Vacate`] does the source.
    MakeRoom,
    /// Have admission keep the name that the copy will bear: nobody but the operator can create a
    /// pod of it.
    Hold,
    /// Undo [`Effect::Hold`].
    Release,
    /// Create the copy as its owner's own, under the name that is kept. Its object stays until
    /// [`Effect::Retire`] or [`Effect::DeleteTarget`], so that it can't come and go unseen.
    Admit {
        /// The node it is to run on.
        node: String,
    },
    /// Make sure that the checkpoint is never restored again (handoff, "Restored at most once").
    Retire,
    /// Close the connections to the broker; the lock goes with them.
    CloseBroker,
}

/// What makes an effect the same one when it is done again: the migration, the step's number and
/// the effect's place in it. It follows from the stored state alone, so that whoever goes on after
/// a crash has the same; a step that is gone into anew has another number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EffectId(String);

impl EffectId {
    /// The ID of the effect at `place` in the list that `state` wants done, for the migration with
    /// this `uid`.
    pub fn new(uid: &str, state: &State, place: usize) -> Self {
        Self(format!("{uid}/{}/{place}", state.steps))
    }

    /// As text: `<uid>/<step>/<place>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The names of all effects.
pub const NAMES: [&str; 39] = [
    "lock",
    "declare-exchange",
    "declare-side-queue",
    "declare-waiting-queue",
    "declare-control-queue",
    "bind-queue",
    "unbind-queue",
    "bind-exchange",
    "unbind-exchange",
    "delete-exchange",
    "delete-queue",
    "move",
    "purge",
    "order",
    "checkpoint",
    "pre-pull",
    "pull-checkpoint",
    "delete-pre-pull",
    "create-job",
    "delete-job",
    "create-target",
    "delete-target",
    "open-gate",
    "announce",
    "prefer-source",
    "unprefer-source",
    "adopt",
    "pin",
    "unpin",
    "scale-down",
    "scale-up",
    "delete-source",
    "vacate",
    "make-room",
    "hold",
    "release",
    "admit",
    "retire",
    "close-broker",
];

impl Effect {
    /// A short name for logs and fault plans.
    pub fn name(&self) -> &'static str {
        match self {
            Effect::Lock => "lock",
            Effect::Topology(Topology::DeclareExchange { .. }) => "declare-exchange",
            Effect::Topology(Topology::DeclareSideQueue { .. }) => "declare-side-queue",
            Effect::Topology(Topology::DeclareWaitingQueue { .. }) => "declare-waiting-queue",
            Effect::Topology(Topology::DeclareControlQueue { .. }) => "declare-control-queue",
            Effect::Topology(Topology::BindQueue { .. }) => "bind-queue",
            Effect::Topology(Topology::UnbindQueue { .. }) => "unbind-queue",
            Effect::Topology(Topology::BindExchange { .. }) => "bind-exchange",
            Effect::Topology(Topology::UnbindExchange { .. }) => "unbind-exchange",
            Effect::Topology(Topology::DeleteExchange { .. }) => "delete-exchange",
            Effect::Topology(Topology::DeleteQueue { .. }) => "delete-queue",
            Effect::Topology(Topology::Move { .. }) => "move",
            Effect::Topology(Topology::Purge { .. }) => "purge",
            Effect::Order(_) => "order",
            Effect::Checkpoint => "checkpoint",
            Effect::PrePull => "pre-pull",
            Effect::PullCheckpoint => "pull-checkpoint",
            Effect::DeletePrePull => "delete-pre-pull",
            Effect::CreateJob => "create-job",
            Effect::DeleteJob => "delete-job",
            Effect::CreateTarget => "create-target",
            Effect::DeleteTarget => "delete-target",
            Effect::OpenGate => "open-gate",
            Effect::Announce => "announce",
            Effect::PreferSource => "prefer-source",
            Effect::UnpreferSource => "unprefer-source",
            Effect::Adopt => "adopt",
            Effect::Pin => "pin",
            Effect::Unpin => "unpin",
            Effect::ScaleDown { .. } => "scale-down",
            Effect::ScaleUp { .. } => "scale-up",
            Effect::DeleteSource => "delete-source",
            Effect::Vacate => "vacate",
            Effect::MakeRoom => "make-room",
            Effect::Hold => "hold",
            Effect::Release => "release",
            Effect::Admit { .. } => "admit",
            Effect::Retire => "retire",
            Effect::CloseBroker => "close-broker",
        }
    }
}
