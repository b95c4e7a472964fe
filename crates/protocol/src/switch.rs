//! From the checkpoint to the end: transfer, restore, replay, switch, removal (handoff, 8 to 11).

use crate::broker::{Binding, Order, Topology};
use crate::control::{Control, Role};
use crate::decide::{Next, source};
use crate::effect::Effect;
use crate::hop;
use crate::names::control_queue;
use crate::observation::{Interest, Job, Observation, Owner, Pod};
use crate::pending::REMEMBERS;
use crate::phase::{
    Commit, Failure, Hop, Image, Incarnation, Phase, Pin, Plan, Progress, RestoreStep, SwitchStep,
    Taken,
};
use crate::remove::{both_hops, counted, removed};
use crate::spec::{ReplayMode, Settings, Strategy};
use crate::time::Time;

/// Watched things wake the operator by themselves; this only bounds what a lost event costs.
const WATCHED: u64 = 1_000;
/// Wake-up in milliseconds while the broker's counters are waited for.
const POLL: u64 = 20;

/// What is known once the target runs.
pub(crate) struct Facts<'a> {
    pub plan: &'a Plan,
    pub taken: &'a Taken,
    pub image: &'a Image,
    pub target: &'a Incarnation,
}

impl Facts<'_> {
    fn replaying(&self, progress: Progress, commit: Option<Commit>) -> Next {
        Next::go(Phase::Replaying {
            plan: self.plan.clone(),
            taken: self.taken.clone(),
            image: self.image.clone(),
            target: self.target.clone(),
            progress,
            commit,
        })
    }

    pub(crate) fn finalizing(&self, step: SwitchStep) -> Next {
        Next::go(Phase::Finalizing {
            plan: self.plan.clone(),
            taken: self.taken.clone(),
            image: self.image.clone(),
            target: self.target.clone(),
            step,
        })
    }
}

pub(crate) fn transfer(plan: &Plan, taken: &Taken, seen: &Observation) -> Next {
    match &seen.job {
        Some(Job::Done { image, bytes }) => Next::go(Phase::Restoring {
            plan: plan.clone(),
            taken: taken.clone(),
            image: Image { reference: image.clone(), bytes: *bytes },
            step: match (plan.strategy, &plan.hop) {
                (Strategy::ShadowPod, Hop::Only | Hop::First { .. }) => RestoreStep::Order,
                (Strategy::ShadowPod, Hop::Second(_)) | (Strategy::Sequential, _) => {
                    RestoreStep::Pull
                }
            },
        }),
        Some(Job::Failed(why)) => Next::Fail(Failure::new(
            "TransferFailed",
            format!("the checkpoint did not reach {}: {why}", plan.goal()),
        )),
        Some(Job::Running) | None => {
            Next::Wait(WATCHED, format!("the checkpoint to reach {}", plan.goal()))
        }
    }
}

/// The order lies in the target's control queue before its pod exists, so that whatever the copy
/// does on waking, it ends up on `Q`. In mode `Park` it wakes on the park queue and waits.
pub(crate) fn restore_effects(plan: &Plan, step: RestoreStep) -> Vec<Effect> {
    match step {
        // Without the labels that Services select nobody finds it; a gate that opens only at the
        // switch is noticed by the kubelet up to two seconds later.
        RestoreStep::Beside => vec![Effect::CreateTarget, Effect::OpenGate],
        // From here on no fresh pod may come, whoever deletes the one that is there.
        // Both take their time, and the node need not wait for the API server.
        RestoreStep::Pull => vec![Effect::PullCheckpoint, Effect::Hold],
        RestoreStep::Vacate => vec![Effect::Hold, Effect::Vacate],
        RestoreStep::MakeRoom => vec![Effect::Hold, Effect::MakeRoom],
        RestoreStep::Order => lay_out_order(plan),
        RestoreStep::Prepare(_) => {
            hop::left_queue(plan).into_iter().chain(lay_out_order(plan)).collect()
        }
        // Somebody may have taken the policy away. Where nobody else serves, the copy does as soon as
        // its probes pass.
        RestoreStep::Admit(attempt) => {
            let admit = Effect::Admit { node: attempt.node(plan).to_owned() };
            let open = attempt.commit.is_some().then_some(Effect::OpenGate);
            [Effect::Hold, admit].into_iter().chain(open).collect()
        }
        RestoreStep::Retry(_) => vec![Effect::DeleteTarget],
    }
}

fn lay_out_order(plan: &Plan) -> Vec<Effect> {
    if plan.alone() {
        return Vec::new();
    }
    let mut effects = vec![Effect::Topology(Topology::DeclareControlQueue {
        name: control_queue(&plan.target_pod),
        like: control_queue(&plan.source_pod),
    })];
    if plan.mode != ReplayMode::Park {
        let queue = plan.names.primary.clone();
        let control = Control::StartReplay { queue, role: Role::Target };
        effects.push(Effect::Order(Order::new(&plan.target_pod, control)));
    } else if plan.strategy == Strategy::Sequential {
        // Nobody else is there to be proved gone, or to go on without it.
        effects.push(end_replay(plan));
    }
    effects
}

fn end_replay(plan: &Plan) -> Effect {
    Effect::Order(Order::new(&plan.target_pod, Control::EndReplay))
}

pub(crate) fn restore(
    plan: &Plan,
    taken: &Taken,
    image: &Image,
    commit: Option<Commit>,
    seen: &Observation,
    now: Time,
) -> Next {
    let pod = &plan.target_pod;
    let Some(target) = &seen.target else {
        return Next::Wait(WATCHED, format!("target pod {pod} to appear"));
    };
    let running = target.statuses.get(&plan.container).filter(|container| container.running);
    let Some(container) = running else {
        let why = target.waiting.as_deref().unwrap_or("it is being started");
        return Next::Wait(WATCHED, format!("target pod {pod} to run: {why}"));
    };
    let mut incarnation = Incarnation {
        uid: target.uid.clone(),
        container_id: container.id.clone(),
        feed_per_second: 0,
    };
    let Some(cuts) = taken.cuts else {
        let step = match commit {
            // With the source gone, a copy that runs is the one that survives.
            Some(commit) => SwitchStep::Open(Some(commit)),
            None if waits(target, seen) => SwitchStep::Hand,
            None => {
                let queue = &plan.names.park;
                let waiting = format!("target pod {pod} to wait on {queue}, its probes passing");
                return Next::Wait(POLL, waiting);
            }
        };
        let facts = Facts { plan, taken, image, target: &incarnation };
        return facts.finalizing(step);
    };
    let primary = seen.broker.as_ref().and_then(|broker| broker.primary);
    let lag = match primary {
        // With the source gone, a copy that runs is the one that survives.
        Some(counts) if counts.consumers == 1 || commit.is_some() => counts.ready,
        _ => {
            return Next::Wait(
                POLL,
                format!("target pod {pod} to consume queue {}", plan.names.primary),
            );
        }
    };
    incarnation.feed_per_second = lag.saturating_mul(1_000) / now.since(cuts.b).max(1);
    Next::go(Phase::Replaying {
        plan: plan.clone(),
        taken: taken.clone(),
        image: image.clone(),
        target: incarnation,
        progress: Progress { lag, at: now },
        commit,
    })
}

/// Mode `Park`: the copy waits where the checkpoint was taken, and is well.
fn waits(target: &Pod, seen: &Observation) -> bool {
    let park = seen.broker.as_ref().and_then(|broker| broker.park);
    target.containers_ready && park.is_some_and(|counts| counts.consumers == 1)
}

/// The target may take over when it has caught up with the source, which gets the same messages:
/// then nobody waits for it at the switch.
pub(crate) fn replay(
    facts: &Facts,
    progress: Progress,
    commit: Option<Commit>,
    settings: &Settings,
    seen: &Observation,
    phase_since: Time,
    now: Time,
) -> Next {
    if let Some(commit) = commit.filter(|_| ended(seen)) {
        return facts.finalizing(SwitchStep::Retire(commit));
    }
    let plan = facts.plan;
    if let (None, Some(commit)) = (commit, hop::inherited(plan, seen, now)) {
        return facts.replaying(progress, Some(commit));
    }
    let Some(broker) = &seen.broker else {
        return Next::Wait(POLL, "the broker to answer".to_owned());
    };
    let probes = seen.target.as_ref().is_some_and(|target| target.containers_ready);
    let (Some(primary), Some(s2)) = (broker.primary, broker.s2) else {
        return Next::Wait(POLL, "the broker's counters".to_owned());
    };
    let waited = now.since(phase_since);
    let allowance = facts.target.feed_per_second.saturating_mul(settings.pause_budget_ms) / 1_000;
    let caught_up = primary.ready <= s2.ready.saturating_add(allowance);
    let forced = plan.mode == ReplayMode::Cutoff && waited >= plan.cutoff_ms;
    if probes && primary.consumers == 1 && (caught_up || forced || commit.is_some()) {
        return facts.finalizing(SwitchStep::Open(commit));
    }
    if commit.is_none()
        && plan.mode == ReplayMode::Drain
        && let Some(next) = stalled(facts, progress, settings, primary.ready, now)
    {
        return next;
    }
    if !probes {
        return Next::Wait(POLL, format!("the probes of target pod {}", plan.target_pod));
    }
    Next::Wait(POLL, format!("target pod {} to catch up: {} to go", plan.target_pod, primary.ready))
}

/// Mode `Drain` is not forced while there is a way back, so it must get on. Written down now and then, not with every
/// message.
fn stalled(
    facts: &Facts,
    progress: Progress,
    settings: &Settings,
    lag: u64,
    now: Time,
) -> Option<Next> {
    let limit = settings.deadlines.progress;
    let waited = now.since(progress.at);
    if lag < progress.lag && waited >= limit / 3 {
        return Some(facts.replaying(Progress { lag, at: now }, None));
    }
    (lag >= progress.lag && waited >= limit).then(|| {
        if facts.plan.base().is_some_and(|base| base.vacated) {
            // To undo a second hop without a way back would be to begin it anew, as slowly.
            return facts.finalizing(SwitchStep::Open(None));
        }
        Next::Fail(Failure::new(
            "NoProgress",
            format!(
                "target pod {} has not caught up by a message in {} s, {lag} to go; messages come \
                 as fast as it applies them: use replayMode Cutoff, or migrate at a quieter time",
                facts.plan.target_pod,
                limit / 1_000
            ),
        ))
    })
}

pub(crate) fn effects(plan: &Plan, step: SwitchStep) -> Vec<Effect> {
    match step {
        SwitchStep::Hand => vec![end_replay(plan)],
        SwitchStep::Open(Some(_)) if handed(plan) || plan.alone() => {
            vec![Effect::Announce, Effect::OpenGate]
        }
        SwitchStep::Open(_) => vec![end_replay(plan), Effect::Announce, Effect::OpenGate],
        SwitchStep::Overlap(_) | SwitchStep::Hop { .. } => Vec::new(),
        SwitchStep::Replace(None) if plan.pin == Pin::Yes => vec![Effect::Pin],
        SwitchStep::Replace(Some(_)) if plan.pin == Pin::Yes => {
            vec![Effect::Pin, Effect::DeleteSource]
        }
        // The source stands still for good, whether or not the target is there to be adopted.
        SwitchStep::Replace(Some(_)) => {
            vec![Effect::PreferSource, Effect::Adopt, leave(plan)]
        }
        // It has been its owner's since it was born.
        SwitchStep::Replace(None) if plan.base().is_some() => vec![Effect::DeleteSource],
        SwitchStep::Replace(None) => match plan.owner {
            Owner::Deployment { .. } => vec![Effect::PreferSource, Effect::Adopt],
            _ => vec![Effect::Adopt, leave(plan)],
        },
        SwitchStep::Retire(_) => std::iter::once(Effect::Retire)
            .chain((plan.keeps_name() || plan.pin == Pin::Yes).then_some(Effect::Release))
            .collect(),
        SwitchStep::Remove(..) => both_hops(plan),
    }
}

/// It has obeyed its order already, which was the commit.
fn handed(plan: &Plan) -> bool {
    plan.mode == ReplayMode::Park && plan.strategy == Strategy::ShadowPod
}

/// A StatefulSet deletes the last of its pods itself; a pod that is deleted before it has heard of its
/// new size would come again.
fn leave(plan: &Plan) -> Effect {
    plan.replicas.map_or(Effect::DeleteSource, |from| Effect::ScaleDown { from })
}

pub(crate) fn interest(plan: &Plan, step: SwitchStep) -> Interest {
    let replay = plan.mode != ReplayMode::Park;
    match step {
        SwitchStep::Hand => Interest { primary: true, target_control: true, ..Interest::default() },
        SwitchStep::Open(_) | SwitchStep::Overlap(_) | SwitchStep::Replace(_) => {
            Interest { primary: true, s1: replay, connected: replay, ..Interest::default() }
        }
        SwitchStep::Hop { .. } => Interest {
            preflight: true,
            primary: true,
            s1: true,
            connected: true,
            ..Interest::default()
        },
        SwitchStep::Retire(_) => Interest { totals: true, ..Interest::default() },
        SwitchStep::Remove(..) => Interest { bindings: true, ..Interest::default() },
    }
}

pub(crate) fn finalize(
    facts: &Facts,
    step: SwitchStep,
    settings: &Settings,
    seen: &Observation,
    since: Time,
    now: Time,
) -> Next {
    let plan = facts.plan;
    let waited = now.since(since);
    if let Some(commit) = hop::inherited(plan, seen, now) {
        match step {
            SwitchStep::Open(None) => return facts.finalizing(SwitchStep::Open(Some(commit))),
            SwitchStep::Overlap(None) => {
                return facts.finalizing(SwitchStep::Overlap(Some(commit)));
            }
            _ => {}
        }
    }
    let ready = seen.target.as_ref().is_some_and(|target| target.ready);
    match step {
        SwitchStep::Hand => match Commit::obeyed(plan, seen, now) {
            Some(commit) => facts.finalizing(SwitchStep::Open(Some(commit))),
            None => Next::Wait(POLL, format!("target pod {} to obey", plan.target_pod)),
        },
        // A crash after the commit is the workload's own: its owner makes a fresh pod.
        SwitchStep::Open(Some(commit)) | SwitchStep::Overlap(Some(commit)) if ended(seen) => {
            facts.finalizing(SwitchStep::Replace(Some(commit)))
        }
        SwitchStep::Open(_) | SwitchStep::Overlap(_) if !ready => {
            Next::Wait(WATCHED, format!("target pod {} to be Ready", plan.target_pod))
        }
        SwitchStep::Open(Some(commit)) if source(plan, seen).is_none() => {
            facts.finalizing(SwitchStep::Retire(commit))
        }
        SwitchStep::Open(commit) => facts.finalizing(SwitchStep::Overlap(commit)),
        // One that has gone since would leave nobody.
        SwitchStep::Overlap(None) if !consumes(seen) => {
            let queue = &plan.names.primary;
            Next::Wait(POLL, format!("target pod {} to consume {queue}", plan.target_pod))
        }
        SwitchStep::Overlap(commit) if waited >= settings.overlap_ms => {
            facts.finalizing(match plan.hop {
                // Its owner would replace the source: it stands by under its name.
                Hop::First { .. } => SwitchStep::Hop { vacated: false },
                Hop::Only | Hop::Second(_) => SwitchStep::Replace(commit),
            })
        }
        SwitchStep::Hop { vacated } => hop::begin(facts, vacated, settings, seen, now),
        SwitchStep::Overlap(_) => Next::Wait(
            settings.overlap_ms - waited,
            format!("Services to find target pod {}", plan.target_pod),
        ),
        SwitchStep::Replace(committed) => match Commit::proved(plan, seen, now) {
            Some(commit) => facts.finalizing(SwitchStep::Retire(committed.unwrap_or(commit))),
            None => Next::Wait(WATCHED, format!("source pod {} to be gone", plan.source_pod)),
        },
        SwitchStep::Retire(commit) => counted(facts, commit, settings, seen, waited, now),
        SwitchStep::Remove(commit, evidence) => removed(facts, commit, evidence, seen),
    }
}

fn consumes(seen: &Observation) -> bool {
    let primary = seen.broker.as_ref().and_then(|broker| broker.primary);
    primary.is_some_and(|counts| counts.consumers > 0)
}

/// Before the commit point the target must be the one incarnation that was restored: another one
/// would have been restored to the old state again.
pub(crate) fn target_lost(phase: &Phase, seen: &Observation) -> Option<Failure> {
    let (plan, incarnation) = match phase {
        Phase::Replaying { plan, target, .. } | Phase::Finalizing { plan, target, .. } => {
            (plan, Some(target))
        }
        Phase::Restoring { plan, step: RestoreStep::Beside, .. } => {
            if !seen.own && seen.acted.is_none() && seen.target.is_none() {
                let pod = &plan.target_pod;
                return Some(Failure::new(
                    "TargetLost",
                    format!("the operator was interrupted as it created target pod {pod}"),
                ));
            }
            (plan, None)
        }
        Phase::Pending
        | Phase::Checkpointing { .. }
        | Phase::Transferring { .. }
        | Phase::Restoring { .. }
        | Phase::Completed { .. }
        | Phase::Unwinding { .. }
        | Phase::Failed { .. } => return None,
    };
    let lost = |why: &str| {
        Some(Failure::new("TargetLost", format!("target pod {} {why}", plan.target_pod)))
    };
    let Some(target) = &seen.target else {
        return incarnation.and_then(|_| lost("is gone"));
    };
    if target.ended {
        return lost("has ended");
    }
    if target.terminating {
        return lost("is being deleted");
    }
    let container = target.statuses.get(&plan.container)?;
    if container.restarts > 0 || restarted(target, plan, incarnation) {
        return lost("was restarted");
    }
    None
}

/// After cut B a source that has lost its connection may have gone to `Q` by habit, and taken what
/// the target needs, before it obeyed again.
pub(crate) fn strayed(phase: &Phase, seen: &Observation) -> Option<Failure> {
    let plan = phase.plan()?;
    phase.taken()?.cuts?;
    let connected = seen.broker.as_ref()?.connected?;
    if connected || plan.remembers || source(plan, seen).is_none_or(|pod| pod.terminating) {
        return None;
    }
    if hop::unheard(phase, seen) {
        return None;
    }
    let (pod, queue) = (&plan.source_pod, &plan.names.primary);
    Some(Failure::new(
        "ConnectionLost",
        format!(
            "source pod {pod} lost its connection to the broker during the handoff and may have \
             consumed {queue} until it was told again; create the migration again, and if it \
             returns to the queue it was told to consume, say so with the annotation {REMEMBERS}: \
             \"true\""
        ),
    ))
}

/// After the commit a crash of the target is the workload's own.
fn ended(seen: &Observation) -> bool {
    seen.target.as_ref().is_none_or(|target| target.ended || target.terminating)
}

/// Whoever else consumes `Q` takes messages that the target needs.
pub(crate) fn crowded(phase: &Phase, seen: &Observation) -> Option<Failure> {
    let (Phase::Restoring { plan, .. }
    | Phase::Replaying { plan, commit: None, .. }
    | Phase::Finalizing {
        plan,
        step: SwitchStep::Open(None) | SwitchStep::Overlap(None) | SwitchStep::Hop { .. },
        ..
    }) = phase
    else {
        return None;
    };
    let consumers = seen.broker.as_ref()?.primary?.consumers;
    (consumers > 1).then(|| {
        let queue = &plan.names.primary;
        let message = format!("queue {queue} has {consumers} consumers; it must be the target's");
        Failure::new("ForeignConsumer", message)
    })
}

fn restarted(target: &Pod, plan: &Plan, incarnation: Option<&Incarnation>) -> bool {
    let Some(expected) = incarnation else { return false };
    let id = target.statuses.get(&plan.container).map(|container| container.id.as_str());
    target.uid != expected.uid || id != Some(expected.container_id.as_str())
}

/// A binding between the migration's own exchanges.
pub(crate) fn both_to_gate(plan: &Plan) -> (String, Binding) {
    (plan.names.both.clone(), Binding::plain(&plan.names.gate))
}
