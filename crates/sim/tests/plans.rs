//! The protocol under faults: nothing is lost, nothing is left over, every run has an end.

use shadow_protocol::effect::NAMES;
use shadow_sim::campaign::{self, Tally};
use shadow_sim::mutant::MUTANTS;
use shadow_sim::run_logged;
use shadow_sim::scenario::Scenario;

/// Mutants must be caught within so many plans.
const ENOUGH: u64 = 5_000;

#[expect(clippy::panic, reason = "the failure is the report")]
fn assert_clean(tally: &Tally) {
    let Some(failure) = tally.failures.first() else { return };
    let scenario = campaign::shrink(failure.clone(), None);
    let verdict = run_logged(scenario.clone(), None);
    panic!(
        "{} of {} plans fail, as {scenario:#?}\n{}\n{:#?}",
        tally.failures.len(),
        tally.plans,
        verdict.log.join("\n"),
        verdict.violations
    );
}

#[test]
fn random_plans() {
    let tally = campaign::plans(0, 20_000);
    println!("{} plans: {:?}", tally.plans, tally.ends);
    assert_clean(&tally);
    assert!(tally.ends["Completed"] > 10_000, "most faults are survived: {:?}", tally.ends);
}

#[test]
fn every_fault_at_every_call() {
    let mut performed = std::collections::BTreeSet::new();
    for scenario in Scenario::kinds() {
        let tally = campaign::every_call(&scenario);
        assert_clean(&tally);
        performed.extend(tally.effects);
        let tally = campaign::every_call_on_the_way_back(&scenario, 173);
        assert_clean(&tally);
        performed.extend(tally.effects);
    }
    let missing: Vec<_> = NAMES.iter().filter(|name| !performed.contains(**name)).collect();
    // Somebody has to die, or to be late, for a message to be moved.
    assert!(missing.is_empty(), "never carried out: {missing:?}");
    assert!(performed.iter().all(|name| NAMES.contains(name)), "{performed:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..200 {
        let twice = [0, 1].map(|_| run_logged(Scenario::from_seed(seed), None));
        assert_eq!(twice[0], twice[1], "seed {seed}");
    }
}

#[test]
fn every_mutant_is_caught_and_its_run_is_short() {
    for mutant in MUTANTS {
        let caught = campaign::caught(mutant, ENOUGH);
        let (plans, scenario) = caught.unwrap_or_else(|| panic!("{mutant:?} survives"));
        let verdict = run_logged(scenario.clone(), Some(mutant));
        println!(
            "{mutant:?}: after {plans} plans, {:?}: {:?}",
            scenario.faults, verdict.violations
        );
        assert!(scenario.faults.len() <= 2, "{mutant:?} needs {:?}", scenario.faults);
    }
}
