//! The phases of the specification. Each variant carries exactly the facts that hold in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::facts::{
    Attempt, Base, Commit, Cuts, Evidence, Failure, Hop, Image, Incarnation, Pin, Plan, Progress,
    Taken,
};
use crate::observation::Archive;
use crate::time::Time;

/// Version of [`State`] as stored. An operator that finds a newer one leaves the object alone.
pub const FORMAT_VERSION: u32 = 1;

/// The phases as the specification names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PhaseName {
    /// Validation and preflight.
    Pending,
    /// Handoff up to the checkpoint.
    Checkpointing,
    /// The checkpoint travels.
    Transferring,
    /// The target comes up.
    Restoring,
    /// The target catches up.
    Replaying,
    /// The target takes over.
    Finalizing,
    /// Done.
    Completed,
    /// Undone, or refused.
    Failed,
}

impl PhaseName {
    /// The name as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseName::Pending => "Pending",
            PhaseName::Checkpointing => "Checkpointing",
            PhaseName::Transferring => "Transferring",
            PhaseName::Restoring => "Restoring",
            PhaseName::Replaying => "Replaying",
            PhaseName::Finalizing => "Finalizing",
            PhaseName::Completed => "Completed",
            PhaseName::Failed => "Failed",
        }
    }
}

/// The steps of phase Checkpointing (handoff, steps 1 to 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CutStep {
    /// 1: the migration's exchanges and queues; `Q` is fed through the gate.
    Install,
    /// 2: unbind `Q` from the gate; the source works off `Q`.
    CutA,
    /// 2: the source goes on with S1.
    Divert {
        /// When cut A was done.
        cut_a: Time,
    },
    /// 3: prove `Q` empty.
    Empty {
        /// When cut A was done.
        cut_a: Time,
    },
    /// 3: something trailed cut A into `Q`: the source goes back for it, then to S1 again.
    Return {
        /// When cut A was done.
        cut_a: Time,
    },
    /// 4: one operation moves the feed from S1 to `Q` and S2.
    CutB {
        /// When cut A was done.
        cut_a: Time,
    },
    /// 5: the source works off S1.
    Drain(Cuts),
    /// 5: something came late to S1: the source goes back to it.
    Recall(Cuts),
    /// 5: the source stands still on the park queue, S1 is proved empty.
    Quiesce(Cuts),
    /// 6: the order is laid out that wakes the source, should nobody tell it to go on.
    Arm {
        /// The cuts.
        cuts: Cuts,
        /// When the source was told to stand still.
        quiesced: Time,
    },
    /// 6: the checkpoint.
    Freeze {
        /// The cuts.
        cuts: Cuts,
        /// When the source was told to stand still.
        quiesced: Time,
    },
    /// 7: the source goes on with S2.
    Continue {
        /// The cuts.
        cuts: Cuts,
        /// When the source was told to stand still.
        quiesced: Time,
        /// The checkpoint.
        archive: Archive,
    },
    /// Mode `Park`, in which nothing is cut.
    Park(ParkStep),
    /// Without a queue, where there is nothing to cut.
    Alone(AloneStep),
}

/// The steps of phase Checkpointing without a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AloneStep {
    /// The workload's own image, on which the copy is restored.
    Pull,
    /// The checkpoint: what the source does from now on, nobody replays.
    Freeze,
}

/// The steps of phase Checkpointing in mode `Park`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParkStep {
    /// The park queues.
    Declare,
    /// The source leaves `Q` for the first park queue and is proved to hold nothing.
    Stop,
    /// The checkpoint: its copy will wake on the first park queue.
    Freeze {
        /// When the source was told to stand still.
        parked: Time,
    },
    /// The source moves to the second, so that whoever consumes the first is the copy.
    Leave {
        /// When the source was told to stand still.
        parked: Time,
        /// The checkpoint.
        archive: Archive,
    },
}

/// The steps of phase Restoring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreStep {
    /// The copy's order is laid out before its pod exists.
    Order,
    /// The target pod is created beside the source, once: a successor that finds this step and no
    /// pod can't know whether one has lived and died, and gives up.
    Beside,
    /// The copy will bear a pod's name: its checkpoint is pulled on the target node before that pod is
    /// touched.
    Pull,
    /// Strategy Sequential: the source is deleted. It ends with the [`Commit`].
    Vacate,
    /// Second hop: the pod that stands by under the target's name is deleted.
    MakeRoom,
    /// Strategy Sequential: the copy's order is laid out before anybody can come for it.
    Prepare(Attempt),
    /// Strategy Sequential: the owner's next pod of that name is made the copy by admission.
    Admit(Attempt),
    /// Strategy Sequential: the copy never began to run. Its pod goes; the same checkpoint is
    /// restored on the other node, and no fresh pod is ever let in.
    Retry(Attempt),
}

/// The steps of phase Finalizing (handoff, steps 10 and 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwitchStep {
    /// Mode `Park`: `END_REPLAY` to the target, which ends with the [`Commit`].
    Hand,
    /// `END_REPLAY`; the readiness gate opens, Services find the target. From here to `Replace` the
    /// commit lies behind us in mode `Park`, and before us in mode `Replay`.
    Open(Option<Commit>),
    /// Both copies serve until every node has heard of the target.
    Overlap(Option<Commit>),
    /// The first hop of an identity swap is done, and the second begins.
    Hop {
        /// Again: the pod that stood by has made room already.
        vacated: bool,
    },
    /// The owner gets the target, the source is deleted. In mode `Replay` it ends with the
    /// [`Commit`].
    Replace(Option<Commit>),
    /// The checkpoint is never restored again; what the broker counted is read.
    Retire(Commit),
    /// What the migration made is removed.
    Remove(Commit, Evidence),
}

/// How far the handoff had come when it was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reached {
    /// Before cut A: `Q` is fed and consumed as ever.
    Installed,
    /// After cut A, before cut B: the rest is in S1.
    CutA,
    /// After cut B: S2 has all that `Q` has, and the source applies it.
    CutB,
    /// After cut B, and the source died before its checkpoint: the rest is in S1, then in `Q`.
    Rest,
    /// Mode `Park`: `Q` is fed as ever, the source is parked.
    Parked,
    /// After cut B, and the second hop has begun.
    Hopped,
}

/// The steps of the way back (handoff, "Roll back").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undo {
    /// Delete the target and prove it gone.
    Target,
    /// What a second hop has made is removed.
    Clear,
    /// Before cut B: the source works off `Q`.
    WorkOff,
    /// Before cut B: something trailed cut A into `Q`, and the source goes back for it.
    Fetch,
    /// Before cut B: the source goes on with S1.
    Divert,
    /// After cut B: the source works off S1.
    Regather,
    /// After cut B: the source goes on with S2.
    Continue,
    /// After cut B: the feed leaves `Q`; deliveries that trail are waited for.
    Unfeed,
    /// After cut B: `Q` is emptied; S2 has all of it.
    Purge,
    /// `Q` is fed again; the source works off its side queue. Where nobody took its place, what is left is moved
    /// to `Q` at the same time.
    #[serde(alias = "Move")]
    Refeed,
    /// Deliveries that trail the feed's return are waited for and worked off.
    Settle,
    /// The source goes back to `Q`.
    Return,
    /// Something came late to the side queue: the source goes back to it once more.
    Rework,
    /// The source died: somebody takes its place, and the way back goes on with this step.
    Heir(Box<Undo>),
    /// Nobody took its place, after cut B: everything new goes to S2 alone.
    Sweep,
    /// Nobody took its place: what came late is moved to `Q`.
    MoveRest,
    /// What the migration made is removed.
    Remove,
}

/// Where a migration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Preflight; nothing is touched.
    Pending,
    /// Steps 1 to 7.
    Checkpointing {
        /// What was found out.
        plan: Plan,
        /// The step.
        step: CutStep,
    },
    /// The checkpoint becomes an image in the registry.
    Transferring {
        /// What was found out.
        plan: Plan,
        /// The checkpoint.
        taken: Taken,
    },
    /// The target pod comes up.
    Restoring {
        /// What was found out.
        plan: Plan,
        /// The checkpoint.
        taken: Taken,
        /// Its image.
        image: Image,
        /// The step.
        step: RestoreStep,
    },
    /// The target catches up.
    Replaying {
        /// What was found out.
        plan: Plan,
        /// The checkpoint.
        taken: Taken,
        /// Its image.
        image: Image,
        /// The target.
        target: Incarnation,
        /// How far it has caught up.
        progress: Progress,
        /// Strategy Sequential: the source is gone already.
        commit: Option<Commit>,
    },
    /// The target takes over.
    Finalizing {
        /// What was found out.
        plan: Plan,
        /// The checkpoint.
        taken: Taken,
        /// Its image.
        image: Image,
        /// The target.
        target: Incarnation,
        /// The step.
        step: SwitchStep,
    },
    /// The target has taken over and nothing is left.
    Completed {
        /// What was found out.
        plan: Plan,
        /// The checkpoint.
        taken: Taken,
        /// Its image.
        image: Image,
        /// When there was no way back any more.
        commit: Commit,
        /// What the broker counted.
        evidence: Evidence,
    },
    /// On the way back.
    Unwinding {
        /// What was found out.
        plan: Plan,
        /// Why.
        failure: Failure,
        /// The phase it happened in.
        during: PhaseName,
        /// How far the handoff had come.
        reached: Reached,
        /// Nobody took the source's place: the operator itself moves what is left.
        alone: bool,
        /// The step.
        step: Undo,
    },
    /// Refused or rolled back.
    Failed {
        /// Why.
        failure: Failure,
        /// Whether something had been touched and was undone.
        rolled_back: bool,
    },
}

impl Phase {
    /// The phase as users see it. A migration on its way back stays in the phase it failed in.
    pub fn name(&self) -> PhaseName {
        match self {
            Phase::Pending => PhaseName::Pending,
            Phase::Checkpointing { .. } => PhaseName::Checkpointing,
            Phase::Transferring { .. } => PhaseName::Transferring,
            Phase::Restoring { .. } => PhaseName::Restoring,
            Phase::Replaying { .. } => PhaseName::Replaying,
            Phase::Finalizing { .. } => PhaseName::Finalizing,
            Phase::Completed { .. } => PhaseName::Completed,
            Phase::Unwinding { during, .. } => *during,
            Phase::Failed { .. } => PhaseName::Failed,
        }
    }

    /// What was found out, once it was.
    pub fn plan(&self) -> Option<&Plan> {
        match self {
            Phase::Pending | Phase::Failed { .. } => None,
            Phase::Checkpointing { plan, .. }
            | Phase::Transferring { plan, .. }
            | Phase::Restoring { plan, .. }
            | Phase::Replaying { plan, .. }
            | Phase::Finalizing { plan, .. }
            | Phase::Completed { plan, .. }
            | Phase::Unwinding { plan, .. } => Some(plan),
        }
    }

    /// The checkpoint, while the way is forward.
    pub fn taken(&self) -> Option<&Taken> {
        match self {
            Phase::Transferring { taken, .. }
            | Phase::Restoring { taken, .. }
            | Phase::Replaying { taken, .. }
            | Phase::Finalizing { taken, .. }
            | Phase::Completed { taken, .. } => Some(taken),
            Phase::Pending
            | Phase::Checkpointing { .. }
            | Phase::Unwinding { .. }
            | Phase::Failed { .. } => None,
        }
    }

    /// The checkpoint's image, while the way is forward.
    pub fn image(&self) -> Option<&Image> {
        match self {
            Phase::Restoring { image, .. }
            | Phase::Replaying { image, .. }
            | Phase::Finalizing { image, .. }
            | Phase::Completed { image, .. } => Some(image),
            Phase::Pending
            | Phase::Checkpointing { .. }
            | Phase::Transferring { .. }
            | Phase::Unwinding { .. }
            | Phase::Failed { .. } => None,
        }
    }

    /// Without a queue, in the end: for how long the source went on after its checkpoint, in
    /// milliseconds. What it did then is lost.
    pub fn unreplayed(&self) -> Option<u64> {
        let Phase::Completed { taken, commit, .. } = self else { return None };
        taken.whole_until.map(|whole_until| commit.at().since(whole_until))
    }

    /// Nothing more will happen.
    pub fn is_final(&self) -> bool {
        matches!(self, Phase::Completed { .. } | Phase::Failed { .. })
    }
}

/// A migration's state as stored in its object before it is acted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Where it is.
    pub phase: Phase,
    /// Since when it is in this step.
    pub since: Time,
    /// Since when it is in this phase.
    pub phase_since: Time,
    /// How many steps lie behind it.
    #[serde(default)]
    pub steps: u64,
    /// Milliseconds spent in the phases left behind.
    pub timings: BTreeMap<PhaseName, u64>,
}

impl State {
    /// The state of a migration that nobody has looked at yet.
    pub fn new(now: Time) -> Self {
        Self {
            phase: Phase::Pending,
            since: now,
            phase_since: now,
            steps: 0,
            timings: BTreeMap::new(),
        }
    }

    /// The state after going to `phase` at `now`.
    #[must_use]
    pub fn go(&self, phase: Phase, now: Time) -> Self {
        let mut timings = self.timings.clone();
        let mut phase_since = self.phase_since;
        if phase.name() != self.phase.name() {
            *timings.entry(self.phase.name()).or_default() += now.since(phase_since);
            phase_since = now;
        }
        let steps = self.steps.saturating_add(1);
        Self { phase, since: now, phase_since, steps, timings }
    }
}
