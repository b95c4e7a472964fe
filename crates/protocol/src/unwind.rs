//! The way back: the undo of every effect before the commit point (handoff, "Roll back").
//!
//! The target is deleted and proved gone first: from then on the source is the only copy, and every
//! message that the migration touched lies in a queue that the source works off in order. Where the
//! source died, whoever took its place does it; where nobody did, what is left is moved to `Q`.

use crate::broker::{Binding, Counts, Topology};
use crate::decide::{Next, source};
use crate::effect::Effect;
use crate::handoff::{
    back_to_q, bind_exchange, bind_queue, hold_to_s2, purge, to_source, unbind_exchange,
    unbind_queue,
};
use crate::hop;
use crate::names::control_queue;
use crate::observation::{BrokerView, Heir, Interest, Observation};
use crate::phase::{Failure, Phase, PhaseName, Pin, Plan, Reached, State, Undo};
use crate::remove::remove;
use crate::spec::Settings;
use crate::still::disarm;
use crate::switch::both_to_gate;
use crate::time::Time;

const POLL: u64 = 20;
const WATCHED: u64 = 1_000;

pub(crate) fn effects(
    plan: &Plan,
    during: PhaseName,
    reached: Reached,
    alone: bool,
    step: &Undo,
) -> Vec<Effect> {
    let names = &plan.names;
    let (both, gate) = both_to_gate(plan);
    let to_q = |from: &String| {
        Effect::Topology(Topology::Move { from: from.clone(), to: names.primary.clone() })
    };
    match step {
        Undo::Target => {
            // Before, it is somebody else's doing.
            let smaller = plan.replicas.filter(|_| during == PhaseName::Finalizing);
            let stay = smaller.map(|to| Effect::ScaleUp { to });
            // While the new template's ReplicaSet is there, it would replace the target.
            let pinned = plan.pin == Pin::Yes && during == PhaseName::Finalizing;
            let unpin = pinned.then_some(Effect::Unpin);
            let rest = [Effect::DeleteTarget, Effect::UnpreferSource];
            // Whoever is told to go back to `Q` must not be woken then.
            let cut = matches!(reached, Reached::CutB | Reached::Rest | Reached::Hopped);
            let disarm = disarm(plan).filter(|_| cut);
            let first = stay.into_iter().chain(unpin).chain(disarm);
            first.chain(rest).chain(release(plan)).collect()
        }
        Undo::Clear => hop::clear(plan),
        Undo::Settle | Undo::Heir(_) => Vec::new(),
        // Cut A may have been stored but not done, or an application that binds its queue on every
        // connect has undone it: a source that is slower than its feed would never be done.
        Undo::WorkOff => std::iter::once(Binding::plain(&names.gate))
            .chain(plan.bindings.iter().cloned())
            .map(|binding| unbind_queue(&names.primary, binding))
            .collect(),
        Undo::Divert => vec![to_source(plan, &names.s1)],
        Undo::Fetch | Undo::Return => vec![back_to_q(plan)],
        Undo::Rework => vec![to_source(plan, side_queue(plan, reached))],
        // Cut B may have been stored but not done: it is done now, so that one way back fits all.
        Undo::Regather => vec![bind_exchange(&both, gate), to_source(plan, &names.s1)],
        Undo::Continue => {
            let mut effects = vec![to_source(plan, &names.s2)];
            effects.extend(hold_to_s2(plan));
            effects
        }
        Undo::Sweep => {
            let mut effects = vec![bind_exchange(&both, gate)];
            effects.extend(hold_to_s2(plan));
            effects
        }
        // An application that binds its queue on every connect has fed `Q` past the gate.
        Undo::Unfeed => std::iter::once(unbind_exchange(&both, gate))
            .chain(plan.bindings.iter().map(|b| unbind_queue(&names.primary, b.clone())))
            .collect(),
        Undo::Purge => vec![purge(&names.primary)],
        Undo::MoveRest => vec![to_q(side_queue(plan, reached))],
        Undo::Refeed => {
            let feed = bind_queue(&names.primary, Binding::plain(&names.gate));
            if !alone {
                return vec![feed];
            }
            // An order that the dead process did not obey would lead the next one away. What comes to the side
            // queues just before the bind is moved just after it: little is newer by then.
            let rest = || left(plan, reached).into_iter().map(to_q);
            let orders = purge(&control_queue(&plan.source_pod));
            [orders].into_iter().chain(rest()).chain([feed]).chain(rest()).collect()
        }
        Undo::Remove => {
            remove(plan, left(plan, reached)).into_iter().chain(release(plan)).collect()
        }
    }
}

/// The owner's own pod may have the name again; of a second hop that is begun anew, not yet.
fn release(plan: &Plan) -> Option<Effect> {
    (plan.keeps_name() && plan.base().is_none()).then_some(Effect::Release)
}

pub(crate) fn interest(reached: Reached, step: &Undo) -> Interest {
    let none = Interest::default();
    match step {
        Undo::Return if reached == Reached::Parked => {
            Interest { primary: true, park: true, park2: true, ..none }
        }
        Undo::Target => {
            Interest { primary: true, s1: true, s2: true, park: true, heir: true, ..none }
        }
        Undo::WorkOff | Undo::Fetch => Interest { primary: true, ..none },
        Undo::Divert => Interest { primary: true, s1: true, ..none },
        Undo::Regather => Interest { s1: true, ..none },
        Undo::Continue => Interest { s2: true, ..none },
        Undo::Return => Interest { primary: true, s1: true, s2: true, ..none },
        Undo::Purge | Undo::Sweep | Undo::Clear => none,
        Undo::Heir(_) => Interest { heir: true, ..none },
        Undo::Refeed | Undo::Settle | Undo::Rework | Undo::MoveRest => {
            Interest { s1: true, s2: true, ..none }
        }
        Undo::Unfeed => Interest { bindings: true, ..none },
        Undo::Remove => Interest { bindings: true, heir: true, ..none },
    }
}

/// A migration on its way back.
struct Way<'a> {
    plan: &'a Plan,
    failure: &'a Failure,
    during: PhaseName,
    reached: Reached,
    alone: bool,
}

impl Way<'_> {
    /// Goes to `step`, by whoever took the source's place if it is lost.
    fn first(&self, step: Undo, seen: &Observation) -> Next {
        if lost(self.plan, seen) { self.to(Undo::Heir(Box::new(step))) } else { self.to(step) }
    }

    fn to(&self, step: Undo) -> Next {
        Next::go(Phase::Unwinding {
            plan: self.plan.clone(),
            failure: self.failure.clone(),
            during: self.during,
            reached: self.reached,
            alone: self.alone,
            step,
        })
    }
}

pub(crate) fn step(
    phase: &Phase,
    settings: &Settings,
    seen: &Observation,
    since: Time,
    now: Time,
) -> Next {
    let Phase::Unwinding { plan, failure, during, reached, alone, step } = phase else {
        return Next::Wait(WATCHED, String::new());
    };
    let way = Way { plan, failure, during: *during, reached: *reached, alone: *alone };
    let Some(broker) = &seen.broker else {
        return Next::Wait(WATCHED, "the broker to answer; nothing is lost meanwhile".to_owned());
    };
    let waited = now.since(since);
    match step {
        Undo::Target => target_gone(&way, seen, broker),
        Undo::Heir(resume) => inherited(&way, resume, settings, seen, waited),
        Undo::Sweep => way.to(Undo::Unfeed),
        Undo::Clear => way.first(Undo::Regather, seen),
        Undo::MoveRest if drained(side(way.reached, broker)) => way.to(Undo::Remove),
        // Deliveries that trail a cut come one by one: this is done again until none is left.
        Undo::MoveRest => way.to(Undo::MoveRest),
        Undo::Remove if whole(plan, broker) => {
            let failed = || Phase::Failed { failure: failure.clone(), rolled_back: true };
            Next::go(hop::undone(phase).unwrap_or_else(failed))
        }
        Undo::Remove => Next::Wait(POLL, format!("the bindings of {}", plan.names.primary)),
        _ if way.reached == Reached::Parked => parked(&way, settings, seen, broker, waited),
        _ if !way.alone && lost(plan, seen) => way.to(Undo::Heir(Box::new(resume(step)))),
        _ => worked_off(&way, step, settings, broker, waited),
    }
}

/// The steps in which the source works off what is left.
fn worked_off(
    way: &Way,
    step: &Undo,
    settings: &Settings,
    broker: &BrokerView,
    waited: u64,
) -> Next {
    let source = &way.plan.source_pod;
    let side = side(way.reached, broker);
    let settled = waited >= settings.linger_ms;
    // What trails a cut is older than what is in the next queue already.
    let ebbed = waited >= settings.ebb_ms;
    match step {
        Undo::WorkOff if drained(broker.primary) && ebbed => way.to(Undo::Divert),
        Undo::WorkOff if none(broker.primary) => way.to(Undo::Fetch),
        Undo::Fetch if one(broker.primary) => way.to(Undo::WorkOff),
        Undo::Divert if one(broker.s1) && none(broker.primary) => way.to(Undo::Refeed),
        Undo::Regather if one(broker.s1) && drained(broker.s1) && ebbed => match way.reached {
            // `Q` has the rest, fed as it is.
            Reached::Rest => way.to(Undo::Settle),
            _ => way.to(Undo::Continue),
        },
        Undo::Continue if one(broker.s2) => way.to(Undo::Unfeed),
        Undo::Unfeed => unfed(way, settled, broker),
        Undo::Purge => way.to(Undo::Refeed),
        Undo::Refeed => way.to(Undo::Settle),
        Undo::Settle if !way.alone && none(side) && !drained(side) => way.to(Undo::Rework),
        Undo::Settle if settled && way.alone => way.to(Undo::MoveRest),
        // Nobody consumes `Q` meanwhile.
        Undo::Settle if ebbed && !way.alone && drained(side) => way.to(Undo::Return),
        // What came after the settling time would be deleted with the side queue: back to it.
        Undo::Return if none(side) && !drained(side) => way.to(Undo::Rework),
        // What trails for longer is waited for in front of `Q`.
        Undo::Return if one(broker.primary) && idle(side) && settled => way.to(Undo::Remove),
        Undo::Rework if one(side) => way.to(Undo::Settle),
        // It may have obeyed and then lost its connection, and its memory of the order with it.
        Undo::Settle => Next::Wait(POLL, format!("source pod {source} to work off its side queue")),
        _ if waited >= settings.deadlines.obey => way.to(step.clone()),
        Undo::WorkOff | Undo::Regather => {
            Next::Wait(POLL, format!("source pod {source} to work off its side queue"))
        }
        _ => Next::Wait(POLL, format!("source pod {source} to obey")),
    }
}

/// An order that a dead process held returns to the control queue when the broker misses its
/// heartbeats: whoever obeys it then, at the very end, consumes a queue that is to be deleted.
pub(crate) fn stuck(
    state: &State,
    settings: &Settings,
    seen: &Observation,
    now: Time,
) -> Option<Next> {
    let Phase::Unwinding { plan, failure, during, reached, alone, step: Undo::Remove } =
        &state.phase
    else {
        return None;
    };
    let way = Way { plan, failure, during: *during, reached: *reached, alone: false };
    let waited = now.since(state.since);
    let refused = seen.acted.is_none() && seen.trouble.is_some();
    let back = refused && waited >= settings.deadlines.obey && *reached != Reached::Installed;
    let heir = seen.heir.as_ref().is_some_and(|heir| heir.listens);
    match () {
        () if !back => None,
        () if *alone => heir.then(|| way.to(Undo::Heir(Box::new(Undo::Return)))),
        () => (!lost(plan, seen)).then(|| way.to(Undo::Return)),
    }
}

/// Mode `Park`: the source goes back to `Q`.
fn parked(
    way: &Way,
    settings: &Settings,
    seen: &Observation,
    broker: &BrokerView,
    waited: u64,
) -> Next {
    let back = idle(broker.park) && idle(broker.park2);
    let there = broker.consumed_by(way.plan, source(way.plan, seen));
    if lost(way.plan, seen) {
        return way.to(Undo::Heir(Box::new(Undo::Return)));
    }
    if back && there {
        return way.to(Undo::Remove);
    }
    // An order that the dead one held comes back when the broker has noticed, after ours.
    if waited >= settings.deadlines.obey {
        return way.to(Undo::Return);
    }
    Next::Wait(POLL, format!("source pod {} to go back to its queue", way.plan.source_pod))
}

/// Whatever feeds `Q` now, but the migration, is the application's: it is kept in mind for the end.
fn unfed(way: &Way, settled: bool, broker: &BrokerView) -> Next {
    let names = &way.plan.names;
    let Some(bindings) = &broker.bindings else {
        return Next::Wait(POLL, "the broker's bindings".to_owned());
    };
    let known = |binding: &Binding| way.plan.bindings.contains(binding);
    let foreign: Vec<Binding> = bindings
        .iter()
        .filter(|b| b.source != names.both && b.source != names.gate)
        .cloned()
        .collect();
    if foreign.is_empty() && settled {
        return way.to(Undo::Purge);
    }
    if foreign.is_empty() {
        return Next::Wait(POLL, "deliveries that trail the unbind".to_owned());
    }
    let mut plan = way.plan.clone();
    plan.bindings.extend(foreign.into_iter().filter(|binding| !known(binding)));
    Way { plan: &plan, ..*way }.to(Undo::Unfeed)
}

/// The run of the container that the plan names has ended, or is about to.
fn lost(plan: &Plan, seen: &Observation) -> bool {
    let Some(pod) = source(plan, seen) else { return true };
    let status = pod.statuses.get(&plan.container);
    let same = status.is_some_and(|found| found.running && found.id == plan.source_container_id);
    pod.terminating || !same
}

/// The step with which whoever took the source's place goes on: it consumes `Q`, as ever, and must
/// be told again where the rest is.
fn resume(step: &Undo) -> Undo {
    match step {
        Undo::Divert | Undo::WorkOff | Undo::Fetch => Undo::WorkOff,
        Undo::Continue | Undo::Unfeed | Undo::Purge => Undo::Continue,
        Undo::Refeed | Undo::Settle | Undo::Rework | Undo::Return => Undo::Rework,
        other => other.clone(),
    }
}

fn inherited(
    way: &Way,
    resume: &Undo,
    settings: &Settings,
    seen: &Observation,
    waited: u64,
) -> Next {
    if let Some(heir) = seen.heir.as_ref().filter(|heir| heir.listens) {
        let plan = &succeeded(way.plan, heir);
        // No target has ever consumed `Q`: it still has everything since cut B.
        let untouched = way.during == PhaseName::Checkpointing
            && way.reached == Reached::CutB
            && *resume == Undo::Regather;
        let reached = if untouched { Reached::Rest } else { way.reached };
        return Way { plan, reached, ..*way }.to(resume.clone());
    }
    let limit = settings.deadlines.heir;
    if waited < limit {
        let pod = &way.plan.source_pod;
        return Next::Wait(POLL, format!("someone to take the place of source pod {pod}"));
    }
    Way { alone: true, ..*way }.to(match resume {
        Undo::WorkOff => Undo::Refeed,
        Undo::Rework => Undo::MoveRest,
        // Mode `Park`: nothing was cut.
        Undo::Return => Undo::Remove,
        // `Q` has the rest, fed as it is.
        Undo::Regather if way.reached == Reached::Rest => Undo::Settle,
        _ => Undo::Sweep,
    })
}

fn succeeded(plan: &Plan, heir: &Heir) -> Plan {
    Plan {
        source_pod: heir.pod.clone(),
        source_uid: heir.uid.clone(),
        source_container_id: heir.container_id.clone(),
        ..plan.clone()
    }
}

fn target_gone(way: &Way, seen: &Observation, broker: &BrokerView) -> Next {
    let plan = way.plan;
    if seen.target.is_some() {
        return Next::Wait(WATCHED, format!("target pod {} to be gone", plan.target_pod));
    }
    let first = match way.reached {
        Reached::Installed => return way.to(Undo::Remove),
        Reached::CutA => Undo::WorkOff,
        Reached::CutB | Reached::Rest => Undo::Regather,
        Reached::Parked => Undo::Return,
        Reached::Hopped => Undo::Clear,
    };
    if lost(plan, seen) {
        // The second hop's things are in nobody's way but the heir's.
        return match first {
            Undo::Clear => way.to(first),
            // Before a fresh process is there, which feeds and consumes `Q` at once, `Q` gets what is left:
            // it then finds what it would find without a migration, and needs no order.
            Undo::WorkOff if seen.heir.is_none() => Way { alone: true, ..*way }.to(Undo::Refeed),
            _ => way.to(Undo::Heir(Box::new(first))),
        };
    }
    // The kubelet has confirmed the pod's end; the broker must have noticed it too. A consumer that
    // is left is the source's, if the source consumes nothing else: it has forgotten its queue.
    let elsewhere = [broker.s1, broker.s2, broker.park].into_iter().any(|side| !none(side));
    let forgetful = one(broker.primary) && !elsewhere;
    let cut = matches!(way.reached, Reached::CutB | Reached::Hopped);
    if cut && !none(broker.primary) && !forgetful {
        return Next::Wait(POLL, format!("queue {} to have no consumer", plan.names.primary));
    }
    way.to(first)
}

fn drained(counts: Option<Counts>) -> bool {
    counts.is_some_and(|counts| counts.ready == 0)
}

fn one(counts: Option<Counts>) -> bool {
    counts.is_some_and(|counts| counts.consumers == 1)
}

/// Nobody consumes it, or it is gone.
fn idle(counts: Option<Counts>) -> bool {
    counts.is_none_or(|counts| counts.consumers == 0)
}

fn none(counts: Option<Counts>) -> bool {
    counts.is_some_and(|counts| counts.consumers == 0)
}

/// The queues in which something may be left for the source.
fn left(plan: &Plan, reached: Reached) -> Vec<&String> {
    let names = &plan.names;
    match reached {
        Reached::CutA | Reached::Rest => vec![&names.s1],
        Reached::CutB | Reached::Hopped => vec![&names.s1, &names.s2],
        Reached::Installed | Reached::Parked => Vec::new(),
    }
}

/// The queue that holds the rest for the source.
fn side_queue(plan: &Plan, reached: Reached) -> &String {
    match reached {
        Reached::Installed | Reached::CutA | Reached::Rest | Reached::Parked => &plan.names.s1,
        Reached::CutB | Reached::Hopped => &plan.names.s2,
    }
}

fn side(reached: Reached, broker: &BrokerView) -> Option<Counts> {
    match reached {
        Reached::Installed | Reached::CutA | Reached::Rest | Reached::Parked => broker.s1,
        Reached::CutB | Reached::Hopped => broker.s2,
    }
}

fn whole(plan: &Plan, broker: &BrokerView) -> bool {
    let now = broker.bindings.as_ref();
    plan.alone() || now.is_some_and(|now| plan.bindings.iter().all(|binding| now.contains(binding)))
}
