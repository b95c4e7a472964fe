//! What to do next, given what is stored and what is seen. Pure: the same arguments give the same
//! answer, so a restart between any two lines of the operator is harmless.

use crate::effect::Effect;
use crate::observation::{Interest, Observation, Pod, Turn};
use crate::phase::{
    AloneStep, Attempt, CutStep, Failure, ParkStep, Phase, Plan, Reached, RestoreStep, State,
    SwitchStep, Undo,
};
use crate::spec::{ReplayMode, Settings, Spec};
use crate::time::Time;
use crate::{handoff, hop, pending, sequential, set_back, still, switch, unwind};

/// Wake-up in milliseconds while the broker does not answer.
const BLIND: u64 = 100;
/// A watch tells of a change within less than this, in milliseconds.
const UNSEEN: u64 = 2_000;
/// And while it is not its turn: who ends wakes the others.
const QUEUED: u64 = 3_600_000;

/// What the present step comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Its promise is not true yet; look again after so many milliseconds, or when something
    /// watched changes. The text says what is waited for.
    Wait(u64, String),
    /// Its promise is true: go on.
    Go(Box<Phase>),
    /// It can't become true.
    Fail(Failure),
}

impl Next {
    /// Going to `phase`.
    pub(crate) fn go(phase: Phase) -> Self {
        Next::Go(Box::new(phase))
    }
}

/// The answer of [`decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The state to store before anything else is done.
    pub state: State,
    /// What to do then, in order. Empty when it has been done.
    pub effects: Vec<Effect>,
    /// Look again after so many milliseconds; absent: never.
    pub wake: Option<u64>,
    /// What is waited for.
    pub waiting: String,
}

/// The effects of a state: what has to be done, in order, for its promise to become true.
pub fn effects(spec: &Spec, phase: &Phase) -> Vec<Effect> {
    match phase {
        Phase::Pending => pending::effects(spec),
        Phase::Checkpointing { plan, step } => handoff::effects(plan, step),
        Phase::Transferring { .. } => vec![Effect::CreateJob],
        Phase::Restoring { plan, step, .. } => switch::restore_effects(plan, *step),
        Phase::Replaying { .. } => vec![Effect::DeletePrePull, Effect::DeleteJob],
        Phase::Finalizing { plan, step, .. } => switch::effects(plan, *step),
        Phase::Unwinding { plan, during, reached, alone, step, .. } => {
            unwind::effects(plan, *during, *reached, *alone, step)
        }
        Phase::Completed { .. } | Phase::Failed { .. } => vec![Effect::CloseBroker],
    }
}

/// What a state needs to know of the world.
pub fn interest(phase: &Phase) -> Interest {
    let wanted = wanted(phase);
    // Who stands by may go to `Q` by habit, too.
    let connected = wanted.connected || phase.plan().is_some_and(|plan| plan.standby().is_some());
    // Mode `Park`: who leaves `Q`, and who comes to it.
    let consumers = phase.plan().is_some_and(Plan::shared)
        && wanted.primary
        && (wanted.primary_quiet || wanted.target_control || wanted.park2);
    let wanted = Interest { connected, consumers, going: going(phase), ..wanted };
    if phase.plan().is_some_and(Plan::alone) { wanted.without_broker() } else { wanted }
}

/// A pod that has the state is being deleted, or is about to be: a way back that does not know how
/// far that has gone would take the other one, too.
fn going(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::Restoring { step: RestoreStep::Vacate | RestoreStep::MakeRoom, .. }
            | Phase::Finalizing { step: SwitchStep::Replace(_), .. }
    )
}

fn wanted(phase: &Phase) -> Interest {
    match phase {
        Phase::Pending => Interest { preflight: true, primary: true, ..Interest::default() },
        Phase::Checkpointing { step, .. } => handoff::interest(step),
        Phase::Transferring { taken, .. } => {
            let replay = taken.cuts.is_some();
            Interest { job: true, s1: replay, connected: replay, ..Interest::default() }
        }
        Phase::Restoring { plan, step, .. } if plan.mode == ReplayMode::Park => {
            Interest { park: true, pulled: *step == RestoreStep::Pull, ..Interest::default() }
        }
        Phase::Restoring { .. } | Phase::Replaying { .. } => Interest {
            primary: true,
            s1: true,
            s2: true,
            connected: true,
            pulled: matches!(phase, Phase::Restoring { step: RestoreStep::Pull, .. }),
            ..Interest::default()
        },
        Phase::Finalizing { plan, step, .. } => switch::interest(plan, *step),
        Phase::Unwinding { reached, step, .. } => unwind::interest(*reached, step),
        Phase::Completed { .. } | Phase::Failed { .. } => Interest::default(),
    }
}

/// Decides what to store and what to do.
pub fn decide(
    spec: &Spec,
    settings: &Settings,
    state: &State,
    seen: &Observation,
    now: Time,
) -> Decision {
    if let Some(state) = set_back::set_back(state, seen, now) {
        let waiting = "what was due by a clock that has been set back".to_owned();
        return Decision { state, effects: Vec::new(), wake: Some(0), waiting };
    }
    let todo = effects(spec, &state.phase);
    let next = match preempted(spec, state, seen) {
        Some(failure) => Next::Fail(failure),
        None if let Some(why) = queued(&state.phase, seen) => {
            return Decision {
                state: state.clone(),
                effects: Vec::new(),
                wake: Some(QUEUED),
                waiting: format!("its turn: {why}"),
            };
        }
        None if blind(&state.phase, seen) => Next::Wait(BLIND, "the broker to answer".to_owned()),
        None if hop::unheard(&state.phase, seen) => {
            Next::Wait(BLIND, "the source to return to the broker, or to be gone".to_owned())
        }
        None if let Some(failure) = still::held_up(state, settings, seen, now) => {
            Next::Fail(failure)
        }
        None if let Some(next) = unwind::stuck(state, settings, seen, now) => next,
        None if todo.is_empty() || seen.acted.is_some() || state.phase == Phase::Pending => {
            step(spec, settings, state, seen, now)
        }
        None => {
            Next::Wait(0, format!("what is to be done in phase {}", state.phase.name().as_str()))
        }
    };
    let next = overdue(settings, state, seen, now, next);
    match next {
        Next::Wait(wake, waiting) => {
            let acted = seen.acted.is_some() && !undone_by_others(&state.phase, seen, now);
            let idle = acted || blind(&state.phase, seen);
            let effects = if idle { Vec::new() } else { todo };
            let wake = (!state.phase.is_final()).then_some(wake);
            Decision { state: state.clone(), effects, wake, waiting }
        }
        Next::Go(phase) => moved(spec, state, *phase, now),
        Next::Fail(failure) => moved(spec, state, give_up(&state.phase, failure), now),
    }
}

/// Somebody has deleted the transfer Job: it is created again. One that was just created may not be seen yet.
fn undone_by_others(phase: &Phase, seen: &Observation, now: Time) -> bool {
    let long_ago = seen.acted.is_some_and(|acted| now.since(acted) >= UNSEEN);
    matches!(phase, Phase::Transferring { .. }) && seen.job.is_none() && long_ago
}

/// Why it is not its turn. Nothing is done then, and no deadline runs.
fn queued<'a>(phase: &Phase, seen: &'a Observation) -> Option<&'a str> {
    match &seen.turn {
        Turn::Waits(why) if *phase == Phase::Pending => Some(why),
        _ => None,
    }
}

/// Nothing is done without a look at the broker: what speaks against it may have happened since.
fn blind(phase: &Phase, seen: &Observation) -> bool {
    seen.broker.is_none() && *phase != Phase::Pending && !phase.is_final()
}

fn moved(spec: &Spec, state: &State, phase: Phase, now: Time) -> Decision {
    let (from, to) = (state.phase.step(), phase.step());
    debug_assert!(from.next().contains(&to), "{from} may not go to {to}");
    let state = state.go(phase, now);
    let effects = effects(spec, &state.phase);
    Decision { effects, wake: Some(0), waiting: String::new(), state }
}

/// Reasons to leave a step whatever it waits for.
fn preempted(spec: &Spec, state: &State, seen: &Observation) -> Option<Failure> {
    if !can_be_undone(&state.phase, seen) {
        return None;
    }
    // What can be undone of a second hop by then is done again.
    let late = state.phase.plan().and_then(Plan::base).is_some_and(|base| base.vacated)
        // The source's owner may delete it at any moment; to go back is to delete the target, too.
        || matches!(state.phase, Phase::Finalizing { step: SwitchStep::Replace(None), .. });
    if spec.deleted && !late {
        return Some(Failure::new("Deleted", "the migration was deleted before it was done"));
    }
    if spec.abort && !late {
        return Some(Failure::new("Aborted", "spec.abort was set"));
    }
    if let Some(trouble) = seen.trouble.as_ref().filter(|t| t.permanent) {
        return Some(Failure { reason: trouble.reason.clone(), message: trouble.message.clone() });
    }
    switch::target_lost(&state.phase, seen)
        .or_else(|| switch::crowded(&state.phase, seen))
        .or_else(|| switch::strayed(&state.phase, seen))
        .or_else(|| hop::standby_lost(&state.phase, seen))
        .or_else(|| handoff::source_lost(&state.phase, seen))
        .or_else(|| handoff::void(&state.phase, seen))
}

/// A wait past its deadline is a failure, unless only forward is left.
fn overdue(settings: &Settings, state: &State, seen: &Observation, now: Time, next: Next) -> Next {
    let Next::Wait(_, waiting) = &next else { return next };
    let Some(limit) = deadline(&state.phase, settings) else { return next };
    let since = match seen.turn {
        Turn::Since(turn) if state.phase == Phase::Pending => turn.max(state.since),
        _ => state.since,
    };
    if now.since(since) <= limit || !can_be_undone(&state.phase, seen) {
        return next;
    }
    let (reason, why) = match &seen.trouble {
        Some(trouble) => (trouble.reason.as_str(), trouble.message.as_str()),
        None => ("DeadlineExceeded", waiting.as_str()),
    };
    let phase = state.phase.name().as_str();
    Next::Fail(Failure::new(reason, format!("{phase} took longer than {} s: {why}", limit / 1000)))
}

/// Whether the state lies before the commit point and isn't on its way back already.
fn can_be_undone(phase: &Phase, seen: &Observation) -> bool {
    // To undo it is to delete the target, the last one that has the state: the source may be going,
    // or its owner may be about to delete it.
    if (hop::last(phase, seen) || seen.pinned) && switch::target_lost(phase, seen).is_none() {
        return false;
    }
    match phase {
        Phase::Pending
        | Phase::Checkpointing { .. }
        | Phase::Transferring { .. }
        | Phase::Restoring {
            step: RestoreStep::Order | RestoreStep::Beside | RestoreStep::Pull,
            ..
        }
        | Phase::Replaying { commit: None, .. }
        | Phase::Restoring {
            step:
                RestoreStep::Prepare(Attempt { commit: None, .. })
                | RestoreStep::Admit(Attempt { commit: None, .. })
                | RestoreStep::Retry(Attempt { commit: None, .. }),
            ..
        }
        | Phase::Finalizing {
            step: SwitchStep::Open(None) | SwitchStep::Overlap(None) | SwitchStep::Hop { .. },
            ..
        } => true,
        Phase::Restoring { step: RestoreStep::MakeRoom, .. } => {
            seen.standby.as_ref().is_some_and(|pod| !pod.terminating)
        }
        // Once the source is going, only forward is left.
        Phase::Finalizing { step: SwitchStep::Replace(None), plan, .. }
        | Phase::Restoring { step: RestoreStep::Vacate, plan, .. } => {
            source(plan, seen).is_some_and(|pod| !pod.terminating)
        }
        // The order may have been read, unless it is there still and its reader is gone.
        Phase::Finalizing { step: SwitchStep::Hand, .. } => {
            let unread = seen.broker.as_ref().and_then(|broker| broker.target_control);
            seen.target.as_ref().is_none_or(|target| target.ended)
                && unread.is_some_and(|counts| counts.ready > 0)
        }
        Phase::Restoring {
            step: RestoreStep::Prepare(_) | RestoreStep::Admit(_) | RestoreStep::Retry(_),
            ..
        }
        | Phase::Replaying { commit: Some(_), .. }
        | Phase::Finalizing {
            step:
                SwitchStep::Open(Some(_))
                | SwitchStep::Overlap(Some(_))
                | SwitchStep::Replace(Some(_))
                | SwitchStep::Retire(_)
                | SwitchStep::Remove(..),
            ..
        }
        | Phase::Completed { .. }
        | Phase::Unwinding { .. }
        | Phase::Failed { .. } => false,
    }
}

/// The source pod, if the pod of that name is still the same.
pub(crate) fn source<'a>(plan: &Plan, seen: &'a Observation) -> Option<&'a Pod> {
    seen.source.as_ref().filter(|pod| pod.uid == plan.source_uid)
}

fn step(spec: &Spec, settings: &Settings, state: &State, seen: &Observation, now: Time) -> Next {
    // What settles after an effect does so from when it was done, which a crash may have put off.
    let since = seen.acted.map_or(state.since, |acted| acted.max(state.since));
    match &state.phase {
        Phase::Pending => pending::step(spec, settings, seen),
        Phase::Checkpointing { plan, step } => {
            handoff::step(plan, step, settings, seen, since, now)
        }
        Phase::Transferring { plan, taken } => switch::transfer(plan, taken, seen),
        Phase::Restoring { plan, taken, image, step: RestoreStep::Order } => {
            let (plan, taken, image) = (plan.clone(), taken.clone(), image.clone());
            Next::go(Phase::Restoring { plan, taken, image, step: RestoreStep::Beside })
        }
        Phase::Restoring { plan, taken, image, step: RestoreStep::Beside } => {
            switch::restore(plan, taken, image, None, seen, now)
        }
        Phase::Restoring { plan, taken, image, step } => {
            let place = sequential::Place { plan, taken, image };
            sequential::step(&place, *step, settings, seen, since, now)
        }
        Phase::Replaying { plan, taken, image, target, progress, commit } => {
            let facts = switch::Facts { plan, taken, image, target };
            switch::replay(&facts, *progress, *commit, settings, seen, state.phase_since, now)
        }
        Phase::Finalizing { plan, taken, image, target, step } => {
            let facts = switch::Facts { plan, taken, image, target };
            switch::finalize(&facts, *step, settings, seen, since, now)
        }
        Phase::Unwinding { .. } => unwind::step(&state.phase, settings, seen, since, now),
        Phase::Completed { .. } | Phase::Failed { .. } => Next::Wait(0, String::new()),
    }
}

/// How long a state's promise may take to come true, in milliseconds, before the migration is given
/// up, if it still can be; absent where nothing else could be done or progress is the bound.
pub fn deadline(phase: &Phase, settings: &Settings) -> Option<u64> {
    let limits = &settings.deadlines;
    match phase {
        Phase::Pending => Some(limits.preflight),
        Phase::Checkpointing { step, .. } => Some(match step {
            CutStep::Install | CutStep::CutB { .. } | CutStep::Arm { .. } => limits.broker,
            CutStep::Park(step) => match step {
                ParkStep::Declare => limits.proof,
                ParkStep::Stop | ParkStep::Leave { .. } => limits.obey,
                ParkStep::Freeze { .. } => limits.checkpoint,
            },
            CutStep::Alone(AloneStep::Pull) => limits.transfer,
            CutStep::CutA | CutStep::Return { .. } | CutStep::Drain(_) => limits.drain,
            CutStep::Divert { .. }
            | CutStep::Recall(_)
            | CutStep::Quiesce(_)
            | CutStep::Continue { .. } => limits.obey,
            CutStep::Empty { .. } => limits.proof,
            CutStep::Freeze { .. } | CutStep::Alone(AloneStep::Freeze) => limits.checkpoint,
        }),
        Phase::Transferring { .. } | Phase::Restoring { step: RestoreStep::Pull, .. } => {
            Some(limits.transfer)
        }
        Phase::Restoring { .. } => Some(limits.restore),
        Phase::Replaying { plan, .. } => match plan.mode {
            ReplayMode::Cutoff | ReplayMode::Park | ReplayMode::Alone => {
                Some(plan.cutoff_ms.saturating_add(limits.switch))
            }
            // Bounded by its progress.
            ReplayMode::Drain => None,
        },
        // Forward, or back, is all that is left.
        Phase::Finalizing { step: SwitchStep::Hop { vacated: true }, .. }
        | Phase::Completed { .. }
        | Phase::Unwinding { .. }
        | Phase::Failed { .. } => None,
        Phase::Finalizing { .. } => Some(limits.switch),
    }
}

/// The phase in which a failed migration goes on.
fn give_up(phase: &Phase, failure: Failure) -> Phase {
    let Some(plan) = phase.plan() else {
        return Phase::Failed { failure, rolled_back: false };
    };
    if let Some(way) = hop::give_up(phase, &failure) {
        return way;
    }
    let reached = match phase {
        _ if plan.mode == ReplayMode::Park => Reached::Parked,
        // Nobody was told anything.
        _ if plan.alone() => Reached::Installed,
        Phase::Checkpointing { step: CutStep::Install, .. } => Reached::Installed,
        Phase::Checkpointing {
            step:
                CutStep::CutA | CutStep::Divert { .. } | CutStep::Empty { .. } | CutStep::Return { .. },
            ..
        } => Reached::CutA,
        _ => Reached::CutB,
    };
    Phase::Unwinding {
        plan: plan.clone(),
        failure,
        during: phase.name(),
        reached,
        alone: false,
        step: Undo::Target,
    }
}
