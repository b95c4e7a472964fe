//! Where a migration is, without the facts: a name for every step of every phase.
//!
//! What is said of steps in general — which may follow which, what the documents tell of each — is
//! said of these. [`Phase::step`] matches every variant, so a new one does not compile until it has
//! a name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::phase::{AloneStep, Attempt, CutStep, ParkStep, Phase, RestoreStep, SwitchStep, Undo};

macro_rules! steps {
    ($($(#[$doc:meta])+ $step:ident = $name:literal,)+) => {
        /// A step. After the commit point a step is another than before it.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub enum Step {
            $($(#[$doc])+ #[serde(rename = $name)] $step,)+
        }

        impl Step {
            /// All of them, in the order in which a migration may come by.
            pub const ALL: &[Step] = &[$(Step::$step,)+];

            /// Its name: the phase, and the step if the phase has several.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Step::$step => $name,)+
                }
            }
        }
    };
}

steps! {
    /// [`Phase::Pending`].
    Pending = "pending",
    /// [`CutStep::Install`].
    Install = "checkpointing/install",
    /// [`CutStep::CutA`].
    CutA = "checkpointing/cut-a",
    /// [`CutStep::Divert`].
    Divert = "checkpointing/divert",
    /// [`CutStep::Empty`].
    Empty = "checkpointing/empty",
    /// [`CutStep::Return`].
    Return = "checkpointing/return",
    /// [`CutStep::CutB`].
    CutB = "checkpointing/cut-b",
    /// [`CutStep::Drain`].
    Drain = "checkpointing/drain",
    /// [`CutStep::Recall`].
    Recall = "checkpointing/recall",
    /// [`CutStep::Quiesce`].
    Quiesce = "checkpointing/quiesce",
    /// [`CutStep::Arm`].
    Arm = "checkpointing/arm",
    /// [`CutStep::Freeze`].
    Freeze = "checkpointing/freeze",
    /// [`CutStep::Continue`].
    Continue = "checkpointing/continue",
    /// [`ParkStep::Declare`].
    ParkDeclare = "checkpointing/park-declare",
    /// [`ParkStep::Stop`].
    ParkStop = "checkpointing/park-stop",
    /// [`ParkStep::Freeze`].
    ParkFreeze = "checkpointing/park-freeze",
    /// [`ParkStep::Leave`].
    ParkLeave = "checkpointing/park-leave",
    /// [`AloneStep::Pull`].
    AlonePull = "checkpointing/alone-pull",
    /// [`AloneStep::Freeze`].
    AloneFreeze = "checkpointing/alone-freeze",
    /// [`Phase::Transferring`].
    Transferring = "transferring",
    /// [`RestoreStep::Order`].
    Order = "restoring/order",
    /// [`RestoreStep::Beside`].
    Beside = "restoring/beside",
    /// [`RestoreStep::Pull`].
    Pull = "restoring/pull",
    /// [`RestoreStep::MakeRoom`].
    MakeRoom = "restoring/make-room",
    /// [`RestoreStep::Prepare`] beside the source of a second hop.
    HopPrepare = "restoring/hop-prepare",
    /// [`RestoreStep::Admit`] beside the source of a second hop.
    HopAdmit = "restoring/hop-admit",
    /// [`RestoreStep::Retry`] beside the source of a second hop.
    HopRetry = "restoring/hop-retry",
    /// [`RestoreStep::Vacate`].
    Vacate = "restoring/vacate",
    /// [`RestoreStep::Prepare`].
    Prepare = "restoring/prepare",
    /// [`RestoreStep::Admit`].
    Admit = "restoring/admit",
    /// [`RestoreStep::Retry`].
    Retry = "restoring/retry",
    /// [`Phase::Replaying`] beside the source.
    Replaying = "replaying",
    /// [`Phase::Replaying`] after the commit point.
    ReplayingCommitted = "replaying/committed",
    /// [`SwitchStep::Hand`].
    Hand = "finalizing/hand",
    /// [`SwitchStep::Open`] before the commit point.
    Open = "finalizing/open",
    /// [`SwitchStep::Overlap`] before the commit point.
    Overlap = "finalizing/overlap",
    /// [`SwitchStep::Hop`].
    Hop = "finalizing/hop",
    /// [`SwitchStep::Hop`] again.
    HopAgain = "finalizing/hop-again",
    /// [`SwitchStep::Replace`], which ends with the commit point.
    Replace = "finalizing/replace",
    /// [`SwitchStep::Open`] after the commit point.
    OpenCommitted = "finalizing/open/committed",
    /// [`SwitchStep::Overlap`] after the commit point.
    OverlapCommitted = "finalizing/overlap/committed",
    /// [`SwitchStep::Replace`] after the commit point.
    ReplaceCommitted = "finalizing/replace/committed",
    /// [`SwitchStep::Retire`].
    Retire = "finalizing/retire",
    /// [`SwitchStep::Remove`].
    Remove = "finalizing/remove",
    /// [`Phase::Completed`].
    Completed = "completed",
    /// [`Undo::Target`].
    UndoTarget = "unwinding/target",
    /// [`Undo::Clear`].
    UndoClear = "unwinding/clear",
    /// [`Undo::WorkOff`].
    UndoWorkOff = "unwinding/work-off",
    /// [`Undo::Fetch`].
    UndoFetch = "unwinding/fetch",
    /// [`Undo::Divert`].
    UndoDivert = "unwinding/divert",
    /// [`Undo::Regather`].
    UndoRegather = "unwinding/regather",
    /// [`Undo::Continue`].
    UndoContinue = "unwinding/continue",
    /// [`Undo::Heir`].
    UndoHeir = "unwinding/heir",
    /// [`Undo::Sweep`].
    UndoSweep = "unwinding/sweep",
    /// [`Undo::Unfeed`].
    UndoUnfeed = "unwinding/unfeed",
    /// [`Undo::Purge`].
    UndoPurge = "unwinding/purge",
    /// [`Undo::Refeed`].
    UndoRefeed = "unwinding/refeed",
    /// [`Undo::Settle`].
    UndoSettle = "unwinding/settle",
    /// [`Undo::Rework`].
    UndoRework = "unwinding/rework",
    /// [`Undo::MoveRest`].
    UndoMoveRest = "unwinding/move-rest",
    /// [`Undo::Return`].
    UndoReturn = "unwinding/return",
    /// [`Undo::Remove`].
    UndoRemove = "unwinding/remove",
    /// [`Phase::Failed`].
    Failed = "failed",
}

impl Step {
    /// The name of its phase.
    pub fn phase(self) -> &'static str {
        self.name().split('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Phase {
    /// Where it is, without the facts.
    pub fn step(&self) -> Step {
        match self {
            Phase::Pending => Step::Pending,
            Phase::Checkpointing { step, .. } => cut(step),
            Phase::Transferring { .. } => Step::Transferring,
            Phase::Restoring { step, .. } => restore(*step),
            Phase::Replaying { commit: None, .. } => Step::Replaying,
            Phase::Replaying { commit: Some(_), .. } => Step::ReplayingCommitted,
            Phase::Finalizing { step, .. } => switch(*step),
            Phase::Completed { .. } => Step::Completed,
            Phase::Unwinding { step, .. } => undo(step),
            Phase::Failed { .. } => Step::Failed,
        }
    }
}

fn cut(step: &CutStep) -> Step {
    match step {
        CutStep::Install => Step::Install,
        CutStep::CutA => Step::CutA,
        CutStep::Divert { .. } => Step::Divert,
        CutStep::Empty { .. } => Step::Empty,
        CutStep::Return { .. } => Step::Return,
        CutStep::CutB { .. } => Step::CutB,
        CutStep::Drain(_) => Step::Drain,
        CutStep::Recall(_) => Step::Recall,
        CutStep::Quiesce(_) => Step::Quiesce,
        CutStep::Arm { .. } => Step::Arm,
        CutStep::Freeze { .. } => Step::Freeze,
        CutStep::Continue { .. } => Step::Continue,
        CutStep::Park(ParkStep::Declare) => Step::ParkDeclare,
        CutStep::Park(ParkStep::Stop) => Step::ParkStop,
        CutStep::Park(ParkStep::Freeze { .. }) => Step::ParkFreeze,
        CutStep::Park(ParkStep::Leave { .. }) => Step::ParkLeave,
        CutStep::Alone(AloneStep::Pull) => Step::AlonePull,
        CutStep::Alone(AloneStep::Freeze) => Step::AloneFreeze,
    }
}

fn restore(step: RestoreStep) -> Step {
    match step {
        RestoreStep::Order => Step::Order,
        RestoreStep::Beside => Step::Beside,
        RestoreStep::Pull => Step::Pull,
        RestoreStep::Vacate => Step::Vacate,
        RestoreStep::MakeRoom => Step::MakeRoom,
        RestoreStep::Prepare(Attempt { commit: None, .. }) => Step::HopPrepare,
        RestoreStep::Prepare(_) => Step::Prepare,
        RestoreStep::Admit(Attempt { commit: None, .. }) => Step::HopAdmit,
        RestoreStep::Admit(_) => Step::Admit,
        RestoreStep::Retry(Attempt { commit: None, .. }) => Step::HopRetry,
        RestoreStep::Retry(_) => Step::Retry,
    }
}

fn switch(step: SwitchStep) -> Step {
    match step {
        SwitchStep::Hand => Step::Hand,
        SwitchStep::Open(None) => Step::Open,
        SwitchStep::Open(Some(_)) => Step::OpenCommitted,
        SwitchStep::Overlap(None) => Step::Overlap,
        SwitchStep::Overlap(Some(_)) => Step::OverlapCommitted,
        SwitchStep::Hop { vacated: false } => Step::Hop,
        SwitchStep::Hop { vacated: true } => Step::HopAgain,
        SwitchStep::Replace(None) => Step::Replace,
        SwitchStep::Replace(Some(_)) => Step::ReplaceCommitted,
        SwitchStep::Retire(_) => Step::Retire,
        SwitchStep::Remove(..) => Step::Remove,
    }
}

fn undo(step: &Undo) -> Step {
    match step {
        Undo::Target => Step::UndoTarget,
        Undo::Clear => Step::UndoClear,
        Undo::WorkOff => Step::UndoWorkOff,
        Undo::Fetch => Step::UndoFetch,
        Undo::Divert => Step::UndoDivert,
        Undo::Regather => Step::UndoRegather,
        Undo::Continue => Step::UndoContinue,
        Undo::Unfeed => Step::UndoUnfeed,
        Undo::Purge => Step::UndoPurge,
        Undo::Refeed => Step::UndoRefeed,
        Undo::Settle => Step::UndoSettle,
        Undo::Return => Step::UndoReturn,
        Undo::Rework => Step::UndoRework,
        Undo::Heir(_) => Step::UndoHeir,
        Undo::Sweep => Step::UndoSweep,
        Undo::MoveRest => Step::UndoMoveRest,
        Undo::Remove => Step::UndoRemove,
    }
}
