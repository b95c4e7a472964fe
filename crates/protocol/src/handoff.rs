//! Phase Checkpointing: steps 1 to 7 of the handoff in mode `Replay`.
//!
//! The two cuts are single operations at the broker, and the checkpoint is taken only of a consumer
//! that stands still and that the broker itself has proved to hold nothing (`docs/handoff.md`).

use crate::alone;
use crate::broker::{Binding, Counts, Emptiness, Order, Topology};
use crate::control::{Control, Role};
use crate::decide::{Next, source};
use crate::effect::Effect;
use crate::hop;
use crate::observation::{BrokerView, Interest, Observation, Owner, PrePull};
use crate::park;
use crate::phase::{CutStep, Cuts, Failure, ParkStep, Phase, Plan, Taken};
use crate::spec::Settings;
use crate::still::{Stands, armed, disarm, frozen, quiesced, recalled, wake};
use crate::time::Time;

/// Wake-ups in milliseconds: while messages wait for us, and while nobody does.
const HOT: u64 = 5;
const COLD: u64 = 50;

pub(crate) fn effects(plan: &Plan, step: &CutStep) -> Vec<Effect> {
    let names = &plan.names;
    match step {
        CutStep::Install => install(plan),
        CutStep::CutA => vec![unbind_queue(&names.primary, Binding::plain(&names.gate))],
        CutStep::Divert { .. } => vec![to_source(plan, &names.s1)],
        CutStep::Recall(cuts) => {
            let disarm = cuts.armed.map(|_| purge(&names.wake));
            disarm.into_iter().chain([to_source(plan, &names.s1)]).collect()
        }
        CutStep::Return { .. } => vec![back_to_q(plan)],
        CutStep::Empty { .. } | CutStep::Drain(_) => Vec::new(),
        CutStep::CutB { .. } => vec![bind_exchange(&names.both, Binding::plain(&names.gate))],
        CutStep::Quiesce(_) => vec![to_source(plan, &names.park)],
        CutStep::Arm { cuts, .. } if cuts.armed.is_none() => Vec::new(),
        CutStep::Arm { .. } => vec![purge(&names.wake), wake(plan)],
        CutStep::Freeze { .. } => vec![Effect::Checkpoint],
        // The source is told first: it stands still until then.
        CutStep::Continue { .. } => {
            let mut effects = vec![to_source(plan, &names.s2)];
            effects.extend(hold_to_s2(plan));
            effects.extend(disarm(plan));
            effects
        }
        CutStep::Park(step) => park::effects(plan, step),
        CutStep::Alone(step) => alone::effects(*step),
    }
}

/// Everything is declared and bound before the one unbind that makes the gate `Q`'s only feed.
/// A message reaches a queue once however many routes lead there, so the overlap is harmless.
fn install(plan: &Plan) -> Vec<Effect> {
    let names = &plan.names;
    let exchange = |name: &str, alternate: Option<&str>| {
        Effect::Topology(Topology::DeclareExchange {
            name: name.to_owned(),
            alternate: alternate.map(str::to_owned),
        })
    };
    let side = |name: &str| Effect::Topology(Topology::DeclareSideQueue { name: name.to_owned() });
    let mut effects = vec![
        Effect::PrePull,
        exchange(&names.hold, None),
        exchange(&names.gate, Some(&names.hold)),
        exchange(&names.both, None),
        side(&names.s1),
        side(&names.s2),
        side(&names.park),
        Effect::Topology(Topology::DeclareWaitingQueue {
            name: names.wake.clone(),
            pod: plan.source_pod.clone(),
            after_ms: plan.wake_after_ms,
        }),
        bind_queue(&names.s1, Binding::plain(&names.hold)),
        bind_queue(&names.s2, Binding::plain(&names.both)),
        bind_queue(&names.primary, Binding::plain(&names.both)),
        bind_queue(&names.primary, Binding::plain(&names.gate)),
    ];
    effects.extend(plan.bindings.iter().map(|b| bind_exchange(&names.gate, b.clone())));
    // The first hop's target has bound `Q` anew if it does so on every connect.
    let before = plan.base().into_iter().flat_map(|base| &base.plan.bindings);
    let feed = plan.bindings.iter().chain(before);
    effects.extend(feed.map(|b| unbind_queue(&names.primary, b.clone())));
    effects
}

pub(crate) fn purge(queue: &str) -> Effect {
    Effect::Topology(Topology::Purge { queue: queue.to_owned() })
}

/// What the gate can't route goes to S2 from now on. Nothing passes through hold meanwhile: the
/// gate routes to both.
pub(crate) fn hold_to_s2(plan: &Plan) -> [Effect; 2] {
    let names = &plan.names;
    [
        bind_queue(&names.s2, Binding::plain(&names.hold)),
        unbind_queue(&names.s1, Binding::plain(&names.hold)),
    ]
}

pub(crate) fn bind_queue(queue: &str, binding: Binding) -> Effect {
    Effect::Topology(Topology::BindQueue { queue: queue.to_owned(), binding })
}

pub(crate) fn unbind_queue(queue: &str, binding: Binding) -> Effect {
    Effect::Topology(Topology::UnbindQueue { queue: queue.to_owned(), binding })
}

pub(crate) fn bind_exchange(destination: &str, binding: Binding) -> Effect {
    Effect::Topology(Topology::BindExchange { destination: destination.to_owned(), binding })
}

pub(crate) fn unbind_exchange(destination: &str, binding: Binding) -> Effect {
    Effect::Topology(Topology::UnbindExchange { destination: destination.to_owned(), binding })
}

/// `START_REPLAY{queue}` to the source.
pub(crate) fn to_source(plan: &Plan, queue: &str) -> Effect {
    let control = Control::StartReplay { queue: queue.to_owned(), role: Role::Source };
    Effect::Order(Order::new(&plan.source_pod, control))
}

/// `END_REPLAY` to the source.
pub(crate) fn back_to_q(plan: &Plan) -> Effect {
    Effect::Order(Order::new(&plan.source_pod, Control::EndReplay))
}

pub(crate) fn interest(step: &CutStep) -> Interest {
    let none = Interest::default();
    match step {
        CutStep::Install | CutStep::CutB { .. } => Interest { bindings: true, ..none },
        CutStep::CutA | CutStep::Return { .. } => Interest { primary: true, ..none },
        CutStep::Divert { .. } => Interest { primary: true, s1: true, ..none },
        CutStep::Empty { .. } => {
            Interest { primary: true, primary_empty: true, bindings: true, prepull: true, ..none }
        }
        CutStep::Drain(_) | CutStep::Recall(_) => Interest { s1: true, ..none },
        CutStep::Quiesce(_) => Interest { s1: true, park: true, s1_empty: true, ..none },
        CutStep::Arm { .. } | CutStep::Freeze { .. } => {
            Interest { s1: true, park: true, wake: true, ..none }
        }
        CutStep::Continue { .. } => Interest { s2: true, ..none },
        CutStep::Park(step) => park::interest(step),
        CutStep::Alone(step) => alone::interest(*step),
    }
}

pub(crate) fn step(
    plan: &Plan,
    step: &CutStep,
    settings: &Settings,
    seen: &Observation,
    since: Time,
    now: Time,
) -> Next {
    let Some(broker) = &seen.broker else {
        return Next::Wait(COLD, "the broker to answer".to_owned());
    };
    let to = |step: CutStep| Next::go(Phase::Checkpointing { plan: plan.clone(), step });
    match step {
        CutStep::Install => installed(plan, broker, to),
        CutStep::CutA if now.since(since) < settings.ebb_ms => {
            Next::Wait(HOT, "deliveries that trail cut A".to_owned())
        }
        CutStep::CutA => worked_off(plan, now, broker, to),
        CutStep::Return { cut_a } => match broker.primary {
            Some(counts) if counts.consumers == 1 => worked_off(plan, *cut_a, broker, to),
            _ => Next::Wait(HOT, format!("pod {} to go back to its queue", plan.source_pod)),
        },
        CutStep::Divert { cut_a } => diverted(plan, *cut_a, broker, to),
        CutStep::Empty { cut_a } => {
            let when = When { cut_a: *cut_a, since, now };
            emptied(plan, &when, settings, seen, broker, to)
        }
        CutStep::CutB { cut_a } => cut_b(plan, *cut_a, broker, now, to),
        // What trails cut B into S1 is older than what is in S2 already.
        CutStep::Drain(cuts) if now.since(cuts.b) < settings.ebb_ms => {
            Next::Wait(HOT, "deliveries that trail cut B".to_owned())
        }
        CutStep::Drain(cuts) => drained(plan, *cuts, broker, to),
        CutStep::Recall(cuts) => recalled(plan, *cuts, broker, now, to),
        CutStep::Quiesce(cuts) => quiesced(plan, *cuts, broker, since, now, to),
        CutStep::Arm { cuts, quiesced } => armed(plan, *cuts, *quiesced, broker, now, to),
        CutStep::Freeze { cuts, quiesced } => {
            let stands = Stands { cuts: *cuts, quiesced: *quiesced, now };
            frozen(plan, &stands, broker, seen, to)
        }
        CutStep::Continue { cuts, quiesced, archive } => {
            let taken = Taken {
                cuts: Some(*cuts),
                whole_until: None,
                archive: archive.clone(),
                pause_ms: now.since(*quiesced),
            };
            continued(plan, taken, broker, seen)
        }
        CutStep::Park(step) => park::step(plan, step, seen, broker, since, now),
        CutStep::Alone(step) => alone::step(plan, *step, seen, since),
    }
}

fn installed(plan: &Plan, broker: &BrokerView, to: impl Fn(CutStep) -> Next) -> Next {
    let names = &plan.names;
    match foreign(plan, broker, &[&names.gate, &names.both]) {
        Some(failure) => Next::Fail(failure),
        None => to(CutStep::CutA),
    }
}

fn worked_off(plan: &Plan, cut_a: Time, broker: &BrokerView, to: impl Fn(CutStep) -> Next) -> Next {
    match broker.primary {
        Some(Counts { ready: 0, .. }) => to(CutStep::Divert { cut_a }),
        Some(Counts { ready, .. }) => Next::Wait(
            HOT,
            format!(
                "pod {} to work off {ready} messages in {}",
                plan.source_pod, plan.names.primary
            ),
        ),
        None => Next::Wait(COLD, format!("queue {} to be there", plan.names.primary)),
    }
}

fn diverted(plan: &Plan, cut_a: Time, broker: &BrokerView, to: impl Fn(CutStep) -> Next) -> Next {
    let gone = broker.primary.is_some_and(|counts| counts.consumers == 0);
    let here = broker.s1.is_some_and(|counts| counts.consumers == 1);
    if gone && here {
        return to(CutStep::Empty { cut_a });
    }
    let (source, s1) = (&plan.source_pod, &plan.names.s1);
    Next::Wait(
        HOT,
        format!(
            "pod {source} to obey START_REPLAY and consume {s1} (does it read its control queue?)"
        ),
    )
}

struct When {
    cut_a: Time,
    since: Time,
    now: Time,
}

fn emptied(
    plan: &Plan,
    &When { cut_a, since, now }: &When,
    settings: &Settings,
    seen: &Observation,
    broker: &BrokerView,
    to: impl Fn(CutStep) -> Next,
) -> Next {
    let primary = &plan.names.primary;
    if let Some(failure) = foreign(plan, broker, &[&plan.names.both]) {
        return Next::Fail(failure);
    }
    match broker.primary {
        Some(Counts { consumers: 0, ready: 0 }) => {}
        Some(Counts { consumers: 0, .. }) if now.since(cut_a) <= settings.deadlines.proof => {
            return to(CutStep::Return { cut_a });
        }
        Some(Counts { consumers: 0, ready }) => {
            return Next::Fail(Failure::new(
                "ForeignFeed",
                format!(
                    "{ready} messages reached queue {primary} past the migration's gate; \
                         something publishes to it in another way"
                ),
            ));
        }
        Some(Counts { consumers, .. }) => {
            return Next::Fail(Failure::new(
                "ForeignConsumer",
                format!("{consumers} consumers came back to queue {primary} during the handoff"),
            ));
        }
        None => return Next::Wait(COLD, format!("queue {primary} to be there")),
    }
    if let Some(next) = not_pulled(plan, seen) {
        return next;
    }
    // Since the source left `Q`, and with it since the last growth.
    let settled = now.since(since) >= settings.settle_ms;
    if settled && broker.primary_empty == Some(Emptiness::Proved) {
        return to(CutStep::CutB { cut_a });
    }
    Next::Wait(COLD, format!("the proof that queue {primary} holds nothing unacknowledged"))
}

/// The restore needs the workload's own image on the target node.
pub(crate) fn not_pulled(plan: &Plan, seen: &Observation) -> Option<Next> {
    let (node, image) = (&plan.target_node, &plan.base_image);
    match &seen.prepull {
        Some(PrePull::Done) => None,
        Some(PrePull::Failed(why)) => Some(Next::Fail(Failure::new(
            "BaseImageUnavailable",
            format!("node {node} can't pull {image}, which the restore needs: {why}"),
        ))),
        Some(PrePull::Running) | None => {
            Some(Next::Wait(COLD, format!("node {node} to pull {image}")))
        }
    }
}

fn cut_b(
    plan: &Plan,
    a: Time,
    broker: &BrokerView,
    now: Time,
    to: impl Fn(CutStep) -> Next,
) -> Next {
    match foreign(plan, broker, &[&plan.names.both]) {
        Some(failure) => Next::Fail(failure),
        None => to(CutStep::Drain(Cuts { a, b: now, armed: None })),
    }
}

fn drained(plan: &Plan, cuts: Cuts, broker: &BrokerView, to: impl Fn(CutStep) -> Next) -> Next {
    match broker.s1 {
        Some(Counts { ready: 0, consumers: 1 }) => to(CutStep::Quiesce(cuts)),
        _ => Next::Wait(HOT, format!("pod {} to work off {}", plan.source_pod, plan.names.s1)),
    }
}

fn continued(plan: &Plan, taken: Taken, broker: &BrokerView, seen: &Observation) -> Next {
    let alive = source(plan, seen).is_some();
    let here = broker.s2.is_some_and(|counts| counts.consumers == 1);
    if here || !alive {
        return Next::go(Phase::Transferring { plan: plan.clone(), taken });
    }
    Next::Wait(HOT, format!("pod {} to go on with {}", plan.source_pod, plan.names.s2))
}

/// Bindings of `Q` other than from the exchanges `ours`.
fn foreign(plan: &Plan, broker: &BrokerView, ours: &[&String]) -> Option<Failure> {
    let bindings = broker.bindings.as_ref()?;
    let other = bindings.iter().find(|binding| !ours.contains(&&binding.source))?;
    Some(Failure::new(
        "ForeignBinding",
        format!(
            "queue {} was bound to exchange {:?} with key {:?} during the handoff; does the \
             application bind its queue on every connect, or did somebody change the topology?",
            plan.names.primary, other.source, other.routing_key
        ),
    ))
}

/// Before the checkpoint, the source's death takes its state along, as it would without us. After
/// it, the checkpoint is as good, but only where nobody takes the source's place: a fresh process
/// wakes on `Q` and takes what the target needs.
pub(crate) fn source_lost(phase: &Phase, seen: &Observation) -> Option<Failure> {
    let plan = phase.plan()?;
    let pod = &plan.source_pod;
    let copied = match phase {
        Phase::Checkpointing { step, .. } => {
            matches!(step, CutStep::Continue { .. } | CutStep::Park(ParkStep::Leave { .. }))
        }
        // In a second hop, its copy goes on without it.
        Phase::Restoring { .. } | Phase::Replaying { .. } | Phase::Finalizing { .. }
            if plan.base().is_some_and(|base| base.vacated) =>
        {
            return None;
        }
        _ => true,
    };
    let lost = |why: &str| Some(Failure::new("SourceLost", format!("source pod {pod} {why}")));
    let nobody_replaces_it =
        plan.owner == Owner::Bare || plan.base().is_some_and(|base| base.vacated);
    if copied && nobody_replaces_it && (source(plan, seen).is_none() || hop::bereaved(plan, seen)) {
        return None;
    }
    let Some(found) = source(plan, seen) else { return lost("is gone") };
    if found.terminating {
        return lost("is being deleted");
    }
    match found.statuses.get(&plan.container) {
        Some(container) if container.id != plan.source_container_id => {
            lost("was restarted: the state it had is gone")
        }
        Some(container) if container.running => None,
        _ => lost("has crashed: the state it had is gone"),
    }
}

/// A message that trailed cut B into S1 is in no checkpoint: the checkpoint is void.
pub(crate) fn void(phase: &Phase, seen: &Observation) -> Option<Failure> {
    let plan = phase.plan()?;
    phase.taken()?.cuts?;
    let late = seen.broker.as_ref()?.s1?.ready;
    (late > 0).then(|| {
        Failure::new(
            "LateDelivery",
            format!(
                "{late} messages reached {} after the cut, so the checkpoint lacks them; \
                 create the migration again",
                plan.names.s1
            ),
        )
    })
}
