//! The end of a migration, and of its way back: what the broker counted is read, what the migration
//! made is removed.

use crate::broker::{Binding, Topology};
use crate::decide::Next;
use crate::effect::Effect;
use crate::handoff::{bind_queue, unbind_exchange};
use crate::names::{Names, control_queue};
use crate::observation::Observation;
use crate::phase::{Commit, Evidence, Phase, Plan, SwitchStep};
use crate::spec::{ReplayMode, Settings};
use crate::switch::Facts;
use crate::time::Time;

/// Wake-up in milliseconds while the broker's counters are waited for, and its statistics.
const POLL: u64 = 20;
const STATISTICS: u64 = 500;

/// The end of a migration that has completed, both its hops if there were two. S2 has only what `Q`
/// has too; what came to S1 so late is nowhere else.
pub(crate) fn both_hops(plan: &Plan) -> Vec<Effect> {
    if plan.alone() {
        return leftovers(&plan.source_pod, &plan.target_pod);
    }
    let mut effects = feed(plan.origin());
    for plan in std::iter::once(plan).chain(plan.base().map(|base| &base.plan)) {
        let rest = (plan.mode != ReplayMode::Park).then_some(&plan.names.s1);
        effects.extend(dismantle(plan, rest));
    }
    effects.extend(leftovers(&plan.source_pod, &plan.target_pod));
    effects
}

/// The end of the way back. Nobody expects that something is in the `rest` queues by now, but if so,
/// it goes to `Q`: late is better than lost.
pub(crate) fn remove<'a>(plan: &Plan, rest: impl IntoIterator<Item = &'a String>) -> Vec<Effect> {
    if plan.alone() {
        return leftovers(&plan.target_pod, &plan.source_pod);
    }
    let mut effects = feed(plan);
    effects.extend(dismantle(plan, rest));
    effects.extend(leftovers(&plan.target_pod, &plan.source_pod));
    effects
}

/// The control queue of the pod that is `gone`, unless it is the survivor's too, and what was made
/// in the cluster. Without a queue they bear the same name.
fn leftovers(gone: &str, survivor: &str) -> Vec<Effect> {
    let control = (gone != survivor).then(|| delete_queue(&control_queue(gone)));
    control.into_iter().chain([Effect::DeletePrePull, Effect::DeleteJob]).collect()
}

/// Feeds `Q` as it was fed before the migration.
fn feed(plan: &Plan) -> Vec<Effect> {
    plan.bindings.iter().map(|b| bind_queue(&plan.names.primary, b.clone())).collect()
}

/// Removes a hop's exchanges and side queues.
fn dismantle<'a>(plan: &Plan, rest: impl IntoIterator<Item = &'a String>) -> Vec<Effect> {
    let names = &plan.names;
    let mut effects = unfeed(names, &plan.bindings);
    effects.extend(rest.into_iter().map(|from| {
        Effect::Topology(Topology::Move { from: from.clone(), to: names.primary.clone() })
    }));
    effects.extend(names.side_queues().map(delete_queue));
    effects
}

pub(crate) fn delete_queue(name: &str) -> Effect {
    Effect::Topology(Topology::DeleteQueue { name: name.to_owned() })
}

/// Takes the migration's exchanges out of the feed `bindings`.
pub(crate) fn unfeed(names: &Names, bindings: &[Binding]) -> Vec<Effect> {
    let mut effects: Vec<Effect> =
        bindings.iter().map(|b| unbind_exchange(&names.gate, b.clone())).collect();
    effects.extend(
        names
            .exchanges()
            .map(|name| Effect::Topology(Topology::DeleteExchange { name: name.to_owned() })),
    );
    effects
}

/// The source's last figures come with the end of its connection, the publishers' when they are
/// due. What the cuts rest on was proved live; this is for the record.
pub(crate) fn counted(
    facts: &Facts,
    commit: Commit,
    settings: &Settings,
    seen: &Observation,
    waited: u64,
    now: Time,
) -> Next {
    if facts.plan.alone() {
        return facts.finalizing(SwitchStep::Remove(commit, Evidence::default()));
    }
    // What still trails cut B into S1 is looked for before S1 is removed.
    let lingers = facts.taken.cuts.is_some_and(|cuts| now.since(cuts.b) < settings.linger_ms);
    if lingers {
        return Next::Wait(STATISTICS, "deliveries that trail the cut".to_owned());
    }
    let totals = seen.broker.as_ref().and_then(|broker| broker.totals);
    let counted = totals
        .map(|totals| Evidence { primary: totals.primary.since(facts.plan.before), ..totals });
    match counted {
        Some(evidence) if evidence.s1.routed == evidence.s1.acknowledged => {
            facts.finalizing(SwitchStep::Remove(commit, evidence))
        }
        _ if waited >= settings.statistics_ms => {
            facts.finalizing(SwitchStep::Remove(commit, counted.unwrap_or_default()))
        }
        _ => Next::Wait(STATISTICS, "the broker's statistics".to_owned()),
    }
}

pub(crate) fn removed(
    facts: &Facts,
    commit: Commit,
    evidence: Evidence,
    seen: &Observation,
) -> Next {
    let plan = facts.plan;
    let bindings = seen.broker.as_ref().and_then(|broker| broker.bindings.as_ref());
    let whole = bindings.is_some_and(|now| plan.origin().bindings.iter().all(|b| now.contains(b)));
    if !whole && !plan.alone() {
        return Next::Wait(POLL, format!("the bindings of queue {}", plan.names.primary));
    }
    Next::go(Phase::Completed {
        plan: plan.clone(),
        taken: facts.taken.clone(),
        image: facts.image.clone(),
        commit,
        evidence,
    })
}
