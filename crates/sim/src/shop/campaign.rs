//! Many plans, on all cores.

use std::collections::BTreeMap;

use super::plan::Plan;
use super::run;
use crate::campaign::on_all_cores;

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
