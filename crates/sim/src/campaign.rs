//! Many runs: plans of faults by the thousand, faults at every call, and the mutants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use shadow_protocol::phase::PhaseName;
use shadow_protocol::step::Step;

use crate::mutant::Mutant;
use crate::run;
use crate::scenario::{CALL_FAULTS, Fault, Scenario, WORLD_FAULTS, WorldFault};
use crate::verdict::Verdict;

/// What many runs came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there were.
    pub plans: u64,
    /// How many ended in each way: Completed, or why they were undone.
    pub ends: BTreeMap<String, u64>,
    /// The effects that were carried out, by name.
    pub effects: BTreeSet<&'static str>,
    /// From which step a stored state went to which.
    pub transitions: BTreeSet<(Step, Step)>,
    /// The scenarios in which something was violated.
    pub failures: Vec<Scenario>,
}

impl Tally {
    /// Runs one more.
    pub fn run(&mut self, scenario: Scenario) {
        let verdict = run(scenario.clone(), None);
        self.add(scenario, verdict);
    }

    fn add(&mut self, scenario: Scenario, verdict: Verdict) {
        self.plans += 1;
        let end = match (verdict.phase, verdict.reason) {
            (Some(PhaseName::Failed), Some(reason)) => reason,
            (phase, _) => phase.map(PhaseName::as_str).unwrap_or_default().to_owned(),
        };
        *self.ends.entry(end).or_default() += 1;
        self.effects.extend(verdict.effects);
        self.transitions.extend(verdict.transitions);
        if !verdict.violations.is_empty() {
            self.failures.push(scenario);
        }
    }

    /// Adds what other runs came to.
    pub fn join(&mut self, other: Tally) {
        self.plans += other.plans;
        for (end, count) in other.ends {
            *self.ends.entry(end).or_default() += count;
        }
        self.effects.extend(other.effects);
        self.transitions.extend(other.transitions);
        self.failures.extend(other.failures);
    }
}

/// Runs the scenarios of `count` seeds from `first` on, on all cores.
pub fn plans(first: u64, count: u64) -> Tally {
    on_all_cores(first, count, |tally, seed| tally.run(Scenario::from_seed(seed)), Tally::join)
}

/// Does `work` for `count` seeds from `first` on, each core with a tally of its own, and joins them.
pub(crate) fn on_all_cores<T: Default + Send>(
    first: u64,
    count: u64,
    work: impl Fn(&mut T, u64) + Sync,
    join: impl Fn(&mut T, T),
) -> T {
    let next = AtomicU64::new(first);
    let work = || {
        let mut tally = T::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return tally;
            }
            work(&mut tally, seed);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let mut all = T::default();
        for thread in threads {
            match thread.join() {
                Ok(tally) => join(&mut all, tally),
                // A run that ends in the middle is no run without violations.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

/// Every kind of fault at every call that `scenario` makes, one at a time: generated from the calls
/// themselves, so that a new effect is covered without anybody thinking of it.
pub fn every_call(scenario: &Scenario) -> Tally {
    let calls = run(scenario.clone(), None).calls;
    let mut tally = Tally::default();
    for call in 0..calls {
        for fault in CALL_FAULTS {
            let mut scenario = scenario.clone();
            scenario.faults.push(Fault::Call(call, fault));
            tally.run(scenario);
        }
    }
    tally
}

/// The same with the migration given up at every `step` milliseconds: the way back is long.
pub fn every_call_on_the_way_back(scenario: &Scenario, step: usize) -> Tally {
    let mut tally = Tally::default();
    let end = run(scenario.clone(), None).at;
    for after in (0..end).step_by(step) {
        let mut scenario = scenario.clone();
        scenario.faults.push(Fault::World(after, WorldFault::Abort));
        tally.join(every_call(&scenario));
    }
    tally
}

/// How long after a step has begun things go wrong, in milliseconds: at once, and when its effects
/// are done.
const AFTER: [u64; 2] = [0, 20];

/// Every kind of fault of the world at every step that `scenario` comes by and that is `wanted`, one
/// at a time: generated from the steps themselves, as above.
pub fn every_step(scenario: &Scenario, wanted: fn(Step) -> bool) -> Tally {
    let mut tally = Tally::default();
    for step in steps(scenario).into_iter().filter(|step| wanted(*step)) {
        for fault in WORLD_FAULTS {
            for after in AFTER {
                let mut scenario = scenario.clone();
                scenario.faults.push(Fault::Step(step, after, fault));
                tally.add(scenario.clone(), run(scenario, None));
            }
        }
    }
    tally
}

/// The same on the way back, from each step at which the migration can be given up.
pub fn every_step_on_the_way_back(scenario: &Scenario) -> Tally {
    let mut tally = Tally::default();
    for step in steps(scenario).into_iter().filter(|step| step.next().contains(&Step::UndoTarget)) {
        let mut scenario = scenario.clone();
        scenario.faults.push(Fault::Step(step, 1, WorldFault::Abort));
        tally.join(every_step(&scenario, |step| step.phase() == Step::UndoTarget.phase()));
    }
    tally
}

/// The steps that `scenario` comes by.
fn steps(scenario: &Scenario) -> BTreeSet<Step> {
    run(scenario.clone(), None).transitions.into_iter().map(|(_, to)| to).collect()
}

/// The first of `most` seeds in whose scenario `mutant` violates something, and that scenario,
/// made as small as it goes.
pub fn caught(mutant: Mutant, most: u64) -> Option<(u64, Scenario)> {
    (0..most).find_map(|seed| {
        let scenario = Scenario::from_seed(seed);
        let bad = !run(scenario.clone(), Some(mutant)).violations.is_empty();
        bad.then(|| (seed + 1, shrink(scenario, Some(mutant))))
    })
}

/// Takes away whatever the violation does not need.
pub fn shrink(mut scenario: Scenario, mutant: Option<Mutant>) -> Scenario {
    let still_bad = |candidate: &Scenario| !run(candidate.clone(), mutant).violations.is_empty();
    loop {
        let before = scenario.clone();
        for index in (0..scenario.faults.len()).rev() {
            let mut smaller = scenario.clone();
            smaller.faults.remove(index);
            if still_bad(&smaller) {
                scenario = smaller;
            }
        }
        let simplify: [fn(&mut Scenario); 8] = [
            |s| s.backlog = 0,
            |s| s.publishers = 1,
            |s| s.burst = 1,
            |s| s.trail = 0,
            |s| s.habits.late_acks = 0,
            |s| s.habits.batch = 1,
            |s| s.habits.prefetch = 1,
            |s| (s.habits.rebinds, s.habits.remembers) = (false, true),
        ];
        for simpler in simplify {
            let mut smaller = scenario.clone();
            simpler(&mut smaller);
            if smaller != scenario && still_bad(&smaller) {
                scenario = smaller;
            }
        }
        if scenario == before {
            return scenario;
        }
    }
}
