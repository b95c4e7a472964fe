//! The way back: the undo of every effect before the commit point (handoff, "Roll back").
//!
//! The target is deleted and proved gone first: from then on the source is the only copy, and every
//! message that the migration touched lies in a queue that the source works off in order.

use crate::broker::{Binding, Counts, Order, Topology};
use crate::control::Control;
use crate::decide::Next;
use crate::effect::Effect;
use crate::handoff::{bind_exchange, bind_queue, hold_to_s2, to_source, unbind_exchange};
use crate::names::control_queue;
use crate::observation::{BrokerView, Interest, Observation};
use crate::phase::{Phase, Plan, Reached, Undo};
use crate::spec::Settings;
use crate::switch::{both_to_gate, remove};
use crate::time::Time;

const POLL: u64 = 20;
const WATCHED: u64 = 1_000;

pub(crate) fn effects(plan: &Plan, reached: Reached, step: &Undo) -> Vec<Effect> {
    let names = &plan.names;
    let (both, gate) = both_to_gate(plan);
    match step {
        Undo::Target => vec![Effect::DeleteTarget, Effect::UnpreferSource],
        Undo::WorkOff | Undo::Settle => Vec::new(),
        Undo::Divert => vec![to_source(plan, &names.s1)],
        Undo::Rework => {
            let side = if reached == Reached::CutB { &names.s2 } else { &names.s1 };
            vec![to_source(plan, side)]
        }
        // Cut B may have been stored but not done: it is done now, so that one way back fits all.
        Undo::Regather => vec![bind_exchange(&both, gate), to_source(plan, &names.s1)],
        Undo::Continue => {
            let mut effects = vec![to_source(plan, &names.s2)];
            effects.extend(hold_to_s2(plan));
            effects
        }
        Undo::Unfeed => vec![unbind_exchange(&both, gate)],
        Undo::Purge => vec![Effect::Topology(Topology::Purge { queue: names.primary.clone() })],
        Undo::Refeed => vec![bind_queue(&names.primary, Binding::plain(&names.gate))],
        Undo::Return => {
            vec![Effect::Order(Order { pod: plan.source_pod.clone(), control: Control::EndReplay })]
        }
        Undo::Remove => remove(plan, Some(&control_queue(&plan.target_pod))),
    }
}

pub(crate) fn interest(step: &Undo) -> Interest {
    let none = Interest::default();
    match step {
        Undo::Target | Undo::WorkOff => Interest { primary: true, ..none },
        Undo::Divert => Interest { primary: true, s1: true, ..none },
        Undo::Regather => Interest { s1: true, ..none },
        Undo::Continue => Interest { s2: true, ..none },
        Undo::Return => Interest { primary: true, s1: true, s2: true, ..none },
        Undo::Unfeed | Undo::Purge => none,
        Undo::Refeed | Undo::Settle | Undo::Rework => Interest { s1: true, s2: true, ..none },
        Undo::Remove => Interest { bindings: true, ..none },
    }
}

pub(crate) fn step(
    phase: &Phase,
    settings: &Settings,
    seen: &Observation,
    since: Time,
    now: Time,
) -> Next {
    let Phase::Unwinding { plan, failure, during, reached, step } = phase else {
        return Next::Wait(WATCHED, String::new());
    };
    let to = |step: Undo| {
        Next::go(Phase::Unwinding {
            plan: plan.clone(),
            failure: failure.clone(),
            during: *during,
            reached: *reached,
            step,
        })
    };
    let Some(broker) = &seen.broker else {
        return Next::Wait(WATCHED, "the broker to answer; nothing is lost meanwhile".to_owned());
    };
    let source = &plan.source_pod;
    match step {
        Undo::Target => target_gone(plan, *reached, seen, broker, to),
        Undo::WorkOff if drained(broker.primary) => to(Undo::Divert),
        Undo::Divert if one(broker.s1) && none(broker.primary) => to(Undo::Refeed),
        Undo::Regather if one(broker.s1) && drained(broker.s1) => to(Undo::Continue),
        Undo::Continue if one(broker.s2) => to(Undo::Unfeed),
        Undo::Unfeed if now.since(since) >= settings.settle_ms => to(Undo::Purge),
        Undo::Purge => to(Undo::Refeed),
        Undo::Refeed => to(Undo::Settle),
        Undo::Settle
            if now.since(since) >= settings.settle_ms && drained(side(*reached, broker)) =>
        {
            to(Undo::Return)
        }
        // What came after the settling time would be deleted with the side queue: back to it.
        Undo::Return if none(side(*reached, broker)) && !drained(side(*reached, broker)) => {
            to(Undo::Rework)
        }
        Undo::Rework if one(side(*reached, broker)) => to(Undo::Settle),
        Undo::Return if one(broker.primary) && none(side(*reached, broker)) => to(Undo::Remove),
        Undo::Remove if whole(plan, broker) => {
            Next::go(Phase::Failed { failure: failure.clone(), rolled_back: true })
        }
        Undo::Unfeed => Next::Wait(POLL, "deliveries that trail the unbind".to_owned()),
        Undo::WorkOff | Undo::Regather | Undo::Settle => {
            Next::Wait(POLL, format!("source pod {source} to work off its side queue"))
        }
        Undo::Divert | Undo::Continue | Undo::Return | Undo::Rework => {
            Next::Wait(POLL, format!("source pod {source} to obey"))
        }
        Undo::Remove => Next::Wait(POLL, format!("the bindings of {}", plan.names.primary)),
    }
}

fn target_gone(
    plan: &Plan,
    reached: Reached,
    seen: &Observation,
    broker: &BrokerView,
    to: impl Fn(Undo) -> Next,
) -> Next {
    if seen.target.is_some() {
        return Next::Wait(WATCHED, format!("target pod {} to be gone", plan.target_pod));
    }
    // The kubelet has confirmed the pod's end; the broker must have noticed it too.
    if reached == Reached::CutB && !none(broker.primary) {
        return Next::Wait(POLL, format!("queue {} to have no consumer", plan.names.primary));
    }
    match reached {
        Reached::Installed => to(Undo::Remove),
        Reached::CutA => to(Undo::WorkOff),
        Reached::CutB => to(Undo::Regather),
    }
}

fn drained(counts: Option<Counts>) -> bool {
    counts.is_some_and(|counts| counts.ready == 0)
}

fn one(counts: Option<Counts>) -> bool {
    counts.is_some_and(|counts| counts.consumers == 1)
}

fn none(counts: Option<Counts>) -> bool {
    counts.is_some_and(|counts| counts.consumers == 0)
}

/// The queue that holds the rest for the source.
fn side(reached: Reached, broker: &BrokerView) -> Option<Counts> {
    match reached {
        Reached::Installed | Reached::CutA => broker.s1,
        Reached::CutB => broker.s2,
    }
}

fn whole(plan: &Plan, broker: &BrokerView) -> bool {
    let now = broker.bindings.as_ref();
    now.is_some_and(|now| plan.bindings.iter().all(|binding| now.contains(binding)))
}
