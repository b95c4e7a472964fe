//! The second hop of an identity swap: the same engine run again, from the pod that the first hop
//! made to the owner's next pod of the old name (`docs/handoff.md`, "Second hop").
//!
//! The first hop is not removed before the second is done. Its source, under whose name the copy is
//! to come, stands by on S2, fed and whole, until the second hop's image is on the node: until then
//! the way back leads to it. Once it has made room, the first hop's target is the only source, and
//! what fails is the second hop, which is undone and tried again, never the migration.

use crate::broker::Binding;
use crate::decide::{Next, source};
use crate::effect::Effect;
use crate::facts::Hop;
use crate::handoff::{bind_queue, unbind_queue};
use crate::observation::{Observation, Pod};
use crate::phase::{
    Attempt, Base, Commit, CutStep, Failure, Phase, Plan, Reached, RestoreStep, SwitchStep, Undo,
};
use crate::remove::{delete_queue, unfeed};
use crate::sequential::Place;
use crate::spec::{ReplayMode, Settings};
use crate::switch::Facts;
use crate::time::Time;

/// Wake-up in milliseconds while watched things are waited for, and the broker's statistics.
const WATCHED: u64 = 1_000;
const STATISTICS: u64 = 500;

/// The target has taken over, and its connection is known: the second hop begins.
pub(crate) fn begin(
    facts: &Facts,
    vacated: bool,
    settings: &Settings,
    seen: &Observation,
    now: Time,
) -> Next {
    let Hop::First { then } = facts.plan.hop else {
        return Next::Wait(WATCHED, String::new());
    };
    let pod = &facts.plan.target_pod;
    // What trails cut B into S1 is in no checkpoint, and S1 is looked at no more from here on.
    let lingers = facts.taken.cuts.is_some_and(|cuts| now.since(cuts.b) < settings.linger_ms);
    if lingers {
        return Next::Wait(STATISTICS, "deliveries that trail the cut".to_owned());
    }
    let consumers = seen.broker.as_ref().and_then(|broker| broker.primary).map(|q| q.consumers);
    let survey = seen.preflight.as_ref().and_then(|preflight| preflight.survey.as_ref());
    let (Some(1), Some(survey)) = (consumers, survey) else {
        return Next::Wait(STATISTICS, format!("pod {pod} to be its queue's only consumer"));
    };
    let peer = seen.target.as_ref().and_then(|target| target.ip.as_deref());
    let [consumer] = survey.consumers.as_slice() else {
        return Next::Wait(STATISTICS, format!("the broker's statistics to show pod {pod}"));
    };
    if !peer.is_some_and(|peer| consumer.is_at(peer)) {
        return Next::Wait(STATISTICS, format!("the broker's statistics to show pod {pod}"));
    }
    let base = Base {
        plan: facts.plan.clone(),
        taken: facts.taken.clone(),
        image: facts.image.clone(),
        target: facts.target.clone(),
        vacated,
    };
    let connection = consumer.connection.clone();
    let plan = Plan { before: survey.totals, ..second(base, then, connection) };
    Next::go(Phase::Checkpointing { plan, step: CutStep::Install })
}

/// From the first hop's target to its source's name, with the first hop in the exchange's place.
fn second(base: Base, mode: ReplayMode, connection: String) -> Plan {
    let first = base.plan.clone();
    Plan {
        names: first.names.second(),
        source_pod: first.target_pod,
        source_uid: base.target.uid.clone(),
        source_container_id: base.target.container_id.clone(),
        source_connection: connection,
        source_node: first.target_node.clone(),
        target_pod: first.source_pod,
        bindings: vec![Binding::plain(&first.names.both)],
        consumers: 1,
        mode,
        mode_reason: "the second hop of an identity swap".to_owned(),
        hop: Hop::Second(Box::new(base)),
        ..first
    }
}

/// The image is on the node: the pod that bears the target's name makes room, unless it did already.
pub(crate) fn room(base: &Base) -> RestoreStep {
    if base.vacated {
        RestoreStep::Prepare(Attempt { commit: None, failed: 0 })
    } else {
        RestoreStep::MakeRoom
    }
}

/// The pod that stood by is gone: from here on the hop's source is the only one.
pub(crate) fn vacated(place: &Place, seen: &Observation) -> Next {
    let plan = place.plan;
    if seen.standby.is_some() {
        return Next::Wait(WATCHED, format!("pod {} to make room", plan.target_pod));
    }
    let mut plan = plan.clone();
    if let Hop::Second(base) = &mut plan.hop {
        base.vacated = true;
    }
    let place = Place { plan: &plan, ..*place };
    place.to(RestoreStep::Prepare(Attempt { commit: None, failed: 0 }))
}

/// The queue on which the pod lived that has made room: nobody will ever want what comes to it. It
/// is removed in the end, long after it was fed: a publisher whose message is routed to a quorum queue
/// that is being deleted loses its connection *[measured]*.
pub(crate) fn left_queue(plan: &Plan) -> Option<Effect> {
    let names = plan.base().map(|base| &base.plan.names)?;
    Some(unbind_queue(&names.s2, Binding::plain(&names.both)))
}

/// Nobody takes the place of a second hop's source: once it is gone, or its process is, the copy
/// that runs is the survivor.
pub(crate) fn bereaved(plan: &Plan, seen: &Observation) -> bool {
    let vacated = plan.base().is_some_and(|base| base.vacated);
    vacated && source(plan, seen).is_none_or(|pod| pod.ended)
}

/// The target is the only one that is left: the other two, or the one, have gone.
pub(crate) fn last(phase: &Phase, seen: &Observation) -> bool {
    match phase {
        Phase::Finalizing { step: SwitchStep::Hop { vacated }, .. } => *vacated,
        Phase::Restoring { plan, .. }
        | Phase::Replaying { plan, .. }
        | Phase::Finalizing { plan, .. } => bereaved(plan, seen),
        _ => false,
    }
}

/// The only pod that is known to have the state has lost its connection. If it has died, its
/// checkpoint takes its place; if it lives, it may have strayed, and the checkpoint is void: it is
/// waited for until one or the other shows. One that is back consumes `Q` by habit.
pub(crate) fn unheard(phase: &Phase, seen: &Observation) -> bool {
    let (Phase::Restoring { plan, .. }
    | Phase::Replaying { plan, commit: None, .. }
    | Phase::Finalizing {
        plan, step: SwitchStep::Open(None) | SwitchStep::Overlap(None), ..
    }) = phase
    else {
        return false;
    };
    let vacated = plan.base().is_some_and(|base| base.vacated);
    let broker = seen.broker.as_ref();
    let silent = broker.is_some_and(|broker| broker.connected == Some(false));
    let copies = u32::from(seen.target.as_ref().is_some_and(|copy| copy.running));
    let back = broker.and_then(|it| it.primary).is_some_and(|queue| queue.consumers > copies);
    vacated && silent && !plan.remembers && !back && !bereaved(plan, seen)
}

/// The pod that stands by must live for as long as the way back leads to it.
pub(crate) fn standby_lost(phase: &Phase, seen: &Observation) -> Option<Failure> {
    if matches!(phase, Phase::Restoring { step: RestoreStep::MakeRoom, .. }) {
        return None;
    }
    let first = phase.plan()?.standby()?;
    let same = |pod: &Pod| {
        let container = pod.statuses.get(&first.container);
        container.is_some_and(|it| it.running && it.id == first.source_container_id)
    };
    let lives = seen.standby.as_ref().is_some_and(|pod| !pod.terminating && same(pod));
    let pod = &first.source_pod;
    (!lives)
        .then(|| Failure::new("SourceLost", format!("source pod {pod} did not live to the end")))
}

/// Where a failed second hop goes: back to the pod that stands by, if there is one.
pub(crate) fn give_up(phase: &Phase, failure: &Failure) -> Option<Phase> {
    let (plan, reached) = match phase {
        Phase::Finalizing { plan, step: SwitchStep::Hop { vacated: true }, .. } => {
            (plan, Reached::Rest)
        }
        _ => (phase.plan()?.standby()?, Reached::Hopped),
    };
    Some(Phase::Unwinding {
        plan: plan.clone(),
        failure: failure.clone(),
        during: phase.name(),
        reached,
        alone: false,
        step: Undo::Target,
    })
}

/// The first hop's target is gone: what the second hop has made goes, and `Q` is fed as it was. All
/// that is dropped with its queues is in the first hop's S2.
pub(crate) fn clear(first: &Plan) -> Vec<Effect> {
    let names = first.names.second();
    let feed = [Binding::plain(&first.names.both)];
    let mut effects: Vec<Effect> =
        feed.iter().map(|binding| bind_queue(&names.primary, binding.clone())).collect();
    effects.extend(unfeed(&names, &feed));
    effects.extend(names.side_queues().map(delete_queue));
    effects
}

/// A second hop is undone. With nobody left, so is the first; else it is tried again.
pub(crate) fn undone(phase: &Phase) -> Option<Phase> {
    let Phase::Unwinding { plan, failure, during, alone, .. } = phase else { return None };
    let base = plan.base()?;
    Some(if *alone {
        Phase::Unwinding {
            plan: base.plan.clone(),
            failure: failure.clone(),
            during: *during,
            reached: Reached::Rest,
            alone: true,
            step: Undo::Remove,
        }
    } else {
        Phase::Finalizing {
            plan: base.plan.clone(),
            taken: base.taken.clone(),
            image: base.image.clone(),
            target: base.target.clone(),
            step: SwitchStep::Hop { vacated: base.vacated },
        }
    })
}

/// The commit of a second hop whose source died before it was deleted.
pub(crate) fn inherited(plan: &Plan, seen: &Observation, now: Time) -> Option<Commit> {
    bereaved(plan, seen).then(|| Commit::inherited(now))
}
