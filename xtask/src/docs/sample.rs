//! A sample migration in each step, in which things have the names that the documents give them.

use anyhow::Context as _;
use serde_json::json;
use shadow_protocol::broker::{Binding, Totals};
use shadow_protocol::names::Names;
use shadow_protocol::observation::{Archive, Owner};
use shadow_protocol::phase::{
    AloneStep, Attempt, Base, Commit, CutStep, Cuts, Evidence, Failure, Hop, Image, Incarnation,
    ParkStep, Phase, PhaseName, Pin, Plan, Progress, Reached, RestoreStep, SwitchStep, Taken, Undo,
};
use shadow_protocol::spec::{ReplayMode, Strategy, Transfer};
use shadow_protocol::step::Step;
use shadow_protocol::time::Time;

const ZERO: Time = Time(0);

/// What a step may depend on.
pub struct Sample {
    plan: Plan,
    /// On the way back: how far it had come.
    pub reached: Reached,
    commit: Commit,
}

impl Sample {
    pub fn new(mode: ReplayMode, strategy: Strategy, owner: Owner) -> anyhow::Result<Self> {
        // As an operator finds it in a status: nobody but the protocol makes one.
        let commit = serde_json::from_value(json!({ "at": 0 })).context("a sample commit")?;
        Ok(Self { plan: plan(mode, strategy, owner), reached: Reached::CutA, commit })
    }

    /// Its Deployment is pinned.
    pub fn pinned(mut self) -> Self {
        self.plan.pin = Pin::Yes;
        self
    }

    /// The second hop of an identity swap.
    pub fn second() -> anyhow::Result<Self> {
        let set = || Owner::StatefulSet(String::new());
        let first = Self::new(ReplayMode::Cutoff, Strategy::ShadowPod, set())?;
        let base = Base {
            plan: Plan { hop: Hop::First { then: ReplayMode::Cutoff }, ..first.plan.clone() },
            taken: first.taken(),
            image: image(),
            target: target(),
            vacated: false,
        };
        let plan = Plan {
            source_pod: "the shadow".to_owned(),
            target_pod: "the pod".to_owned(),
            hop: Hop::Second(Box::new(base)),
            ..first.plan.clone()
        };
        Ok(Self { plan, ..first })
    }

    /// The migration in `step`.
    pub fn phase(&self, step: Step) -> Phase {
        let facts = || (self.plan.clone(), self.taken(), image());
        let (plan, taken, image) = facts();
        let cut = |step| Phase::Checkpointing { plan: self.plan.clone(), step };
        let restore = |step| {
            let (plan, taken, image) = facts();
            Phase::Restoring { plan, taken, image, step }
        };
        let replay = |commit| {
            let ((plan, taken, image), target) = (facts(), target());
            let progress = Progress { lag: 0, at: ZERO };
            Phase::Replaying { plan, taken, image, target, progress, commit }
        };
        let switch = |step| {
            let ((plan, taken, image), target) = (facts(), target());
            Phase::Finalizing { plan, taken, image, target, step }
        };
        let commit = self.commit;
        let attempt = Attempt { commit: Some(commit), failed: 0 };
        let beside = Attempt { commit: None, failed: 0 };
        match step {
            Step::Pending => Phase::Pending,
            Step::Install => cut(CutStep::Install),
            Step::CutA => cut(CutStep::CutA),
            Step::Divert => cut(CutStep::Divert { cut_a: ZERO }),
            Step::Empty => cut(CutStep::Empty { cut_a: ZERO }),
            Step::Return => cut(CutStep::Return { cut_a: ZERO }),
            Step::CutB => cut(CutStep::CutB { cut_a: ZERO }),
            Step::Drain => cut(CutStep::Drain(CUTS)),
            Step::Recall => cut(CutStep::Recall(CUTS)),
            Step::Quiesce => cut(CutStep::Quiesce(CUTS)),
            Step::Arm => cut(CutStep::Arm { cuts: CUTS, quiesced: ZERO }),
            Step::Freeze => cut(CutStep::Freeze { cuts: CUTS, quiesced: ZERO }),
            Step::Continue => {
                cut(CutStep::Continue { cuts: CUTS, quiesced: ZERO, archive: archive() })
            }
            Step::ParkDeclare => cut(CutStep::Park(ParkStep::Declare)),
            Step::ParkStop => cut(CutStep::Park(ParkStep::Stop)),
            Step::ParkFreeze => cut(CutStep::Park(ParkStep::Freeze { parked: ZERO })),
            Step::ParkLeave => {
                cut(CutStep::Park(ParkStep::Leave { parked: ZERO, archive: archive() }))
            }
            Step::AlonePull => cut(CutStep::Alone(AloneStep::Pull)),
            Step::AloneFreeze => cut(CutStep::Alone(AloneStep::Freeze)),
            Step::Transferring => Phase::Transferring { plan, taken },
            Step::Order => restore(RestoreStep::Order),
            Step::Beside => restore(RestoreStep::Beside),
            Step::Pull => restore(RestoreStep::Pull),
            Step::MakeRoom => restore(RestoreStep::MakeRoom),
            Step::HopPrepare => restore(RestoreStep::Prepare(beside)),
            Step::HopAdmit => restore(RestoreStep::Admit(beside)),
            Step::HopRetry => restore(RestoreStep::Retry(beside)),
            Step::Vacate => restore(RestoreStep::Vacate),
            Step::Prepare => restore(RestoreStep::Prepare(attempt)),
            Step::Admit => restore(RestoreStep::Admit(attempt)),
            Step::Retry => restore(RestoreStep::Retry(attempt)),
            Step::Replaying => replay(None),
            Step::ReplayingCommitted => replay(Some(commit)),
            Step::Hand => switch(SwitchStep::Hand),
            Step::Open => switch(SwitchStep::Open(None)),
            Step::Overlap => switch(SwitchStep::Overlap(None)),
            Step::Hop => switch(SwitchStep::Hop { vacated: false }),
            Step::HopAgain => switch(SwitchStep::Hop { vacated: true }),
            Step::Replace => switch(SwitchStep::Replace(None)),
            Step::OpenCommitted => switch(SwitchStep::Open(Some(commit))),
            Step::OverlapCommitted => switch(SwitchStep::Overlap(Some(commit))),
            Step::ReplaceCommitted => switch(SwitchStep::Replace(Some(commit))),
            Step::Retire => switch(SwitchStep::Retire(commit)),
            Step::Remove => switch(SwitchStep::Remove(commit, Evidence::default())),
            Step::Completed => {
                Phase::Completed { plan, taken, image, commit, evidence: Evidence::default() }
            }
            Step::UndoTarget => self.undo(Undo::Target),
            Step::UndoClear => self.undo(Undo::Clear),
            Step::UndoWorkOff => self.undo(Undo::WorkOff),
            Step::UndoFetch => self.undo(Undo::Fetch),
            Step::UndoDivert => self.undo(Undo::Divert),
            Step::UndoRegather => self.undo(Undo::Regather),
            Step::UndoContinue => self.undo(Undo::Continue),
            Step::UndoHeir => self.undo(Undo::Heir(Box::new(Undo::WorkOff))),
            Step::UndoSweep => self.undo(Undo::Sweep),
            Step::UndoUnfeed => self.undo(Undo::Unfeed),
            Step::UndoPurge => self.undo(Undo::Purge),
            Step::UndoRefeed => self.undo(Undo::Refeed),
            Step::UndoSettle => self.undo(Undo::Settle),
            Step::UndoRework => self.undo(Undo::Rework),
            Step::UndoMoveRest => self.undo(Undo::MoveRest),
            Step::UndoReturn => self.undo(Undo::Return),
            Step::UndoRemove => self.undo(Undo::Remove),
            Step::Failed => Phase::Failed { failure: failure(), rolled_back: true },
        }
    }

    fn undo(&self, step: Undo) -> Phase {
        Phase::Unwinding {
            plan: self.plan.clone(),
            failure: failure(),
            during: PhaseName::Checkpointing,
            reached: self.reached,
            alone: false,
            step,
        }
    }

    fn taken(&self) -> Taken {
        let cut = !matches!(self.plan.mode, ReplayMode::Park | ReplayMode::Alone);
        Taken { cuts: cut.then_some(CUTS), whole_until: None, archive: archive(), pause_ms: 0 }
    }
}

const CUTS: Cuts = Cuts { a: ZERO, b: ZERO, armed: None };

fn archive() -> Archive {
    Archive { path: String::new(), millis: 0 }
}

fn image() -> Image {
    Image { reference: String::new(), bytes: 0 }
}

fn target() -> Incarnation {
    Incarnation { uid: String::new(), container_id: String::new(), feed_per_second: 0 }
}

fn failure() -> Failure {
    Failure::new("", "")
}

fn plan(mode: ReplayMode, strategy: Strategy, owner: Owner) -> Plan {
    let (source_pod, target_pod) = match strategy {
        Strategy::ShadowPod => ("the source", "the target"),
        Strategy::Sequential => ("the pod", "the pod"),
    };
    let leaves = strategy == Strategy::ShadowPod && matches!(owner, Owner::StatefulSet(_));
    Plan {
        hop: Hop::Only,
        names: Names {
            primary: "`Q`".to_owned(),
            lock: "lock".to_owned(),
            gate: "gate".to_owned(),
            hold: "hold".to_owned(),
            both: "both".to_owned(),
            s1: "S1".to_owned(),
            s2: "S2".to_owned(),
            park: "park.1".to_owned(),
            park2: "park.2".to_owned(),
            wake: "wake".to_owned(),
        },
        source_pod: source_pod.to_owned(),
        source_uid: String::new(),
        source_container_id: String::new(),
        source_connection: String::new(),
        remembers: false,
        source_node: "the source's node".to_owned(),
        container: String::new(),
        base_image: String::new(),
        target_pod: target_pod.to_owned(),
        target_node: "the target node".to_owned(),
        owner,
        strategy,
        transfer: Transfer::Registry,
        repository: String::new(),
        consumers: 1,
        bindings: vec![Binding::plain("`E`")],
        before: Totals::default(),
        mode,
        mode_reason: String::new(),
        replicas: leaves.then_some(1),
        pin: Pin::No,
        cutoff_ms: 0,
        wake_after_ms: 8_000,
    }
}
