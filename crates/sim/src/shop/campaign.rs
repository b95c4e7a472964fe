//! Many plans, on all cores.

use std::collections::BTreeMap;

use shadow_protocol::spec::{IdentitySwap, ReplayMode};

use super::plan::Plan;
use super::run;
use crate::campaign::on_all_cores;
use crate::scenario::OwnerKind;

/// What many runs came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there were.
    pub plans: u64,
    /// How many ended in each way: Completed, or why not.
    pub ends: BTreeMap<String, u64>,
    /// The seeds of those in which something was violated.
    pub failures: Vec<u64>,
}

/// Runs the plans of `count` seeds from `first` on.
pub fn plans(first: u64, count: u64) -> Tally {
    let add = |tally: &mut Tally, seed| {
        let verdict = run(&Plan::from_seed(seed));
        tally.plans += 1;
        *tally.ends.entry(verdict.end).or_default() += 1;
        if !verdict.violations.is_empty() {
            tally.failures.push(seed);
        }
    };
    let join = |all: &mut Tally, other: Tally| {
        all.plans += other.plans;
        for (end, count) in other.ends {
            *all.ends.entry(end).or_default() += count;
        }
        all.failures.extend(other.failures);
        all.failures.sort_unstable();
    };
    on_all_cores(first, count, add, join)
}

/// A migration of each kind that completes when nothing goes wrong.
///
/// # Panics
///
/// If none of a kind does.
pub fn ordinary() -> Vec<Plan> {
    let kinds = [
        (OwnerKind::Bare, IdentitySwap::None, false),
        (OwnerKind::Deployment, IdentitySwap::None, false),
        (OwnerKind::StatefulSet, IdentitySwap::None, false),
        (OwnerKind::StatefulSet, IdentitySwap::None, true),
        (OwnerKind::Shrinking, IdentitySwap::None, false),
        (OwnerKind::StatefulSet, IdentitySwap::ExchangeFence, false),
        (OwnerKind::StatefulSet, IdentitySwap::Cutoff, false),
    ];
    let first = |(owner, swap, alone)| {
        let of_kind = |plan: &Plan| {
            let it = &plan.scenario;
            (it.owner, it.swap, it.alone()) == (owner, swap, alone)
        };
        let plans = (0..1_000).map(|seed| Plan { faults: Vec::new(), ..Plan::from_seed(seed) });
        plans.filter(of_kind).find(|plan| run(plan).end == "Completed")
    };
    let mut all: Vec<_> = kinds.into_iter().filter_map(first).collect();
    assert_eq!(all.len(), kinds.len(), "one of each kind completes");
    let mut parked = all[2].clone();
    (parked.scenario.mode, parked.scenario.habits.remembers) = (Some(ReplayMode::Park), true);
    all.push(parked);
    all
}

/// The plan with as few faults as it takes to fail.
pub fn shrink(mut plan: Plan) -> Plan {
    let mut index = 0;
    while index < plan.faults.len() {
        let mut fewer = plan.clone();
        fewer.faults.remove(index);
        if run(&fewer).violations.is_empty() {
            index += 1;
        } else {
            plan = fewer;
        }
    }
    plan
}
