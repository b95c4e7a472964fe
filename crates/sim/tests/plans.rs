//! The protocol under faults: nothing is lost, nothing is left over, every run has an end.

use std::time::{Duration, Instant};

use shadow_protocol::effect::NAMES;
use shadow_protocol::phase::PhaseName;
use shadow_sim::campaign::{self, Tally};
use shadow_sim::mutant::MUTANTS;
use shadow_sim::run_logged;
use shadow_sim::scenario::{Fault, Scenario, WorldFault};

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
    for scenario in Scenario::loads() {
        assert_clean(&campaign::every_call(&scenario));
    }
    let missing: Vec<_> = NAMES.iter().filter(|name| !performed.contains(**name)).collect();
    // Somebody has to die, or to be late, for a message to be moved.
    assert!(missing.is_empty(), "never carried out: {missing:?}");
    assert!(performed.iter().all(|name| NAMES.contains(name)), "{performed:?}");
}

/// How a load ends: Completed, or why not.
fn end_of(scenario: &Scenario) -> String {
    let begun = Instant::now();
    let verdict = run_logged(scenario.clone(), None);
    let took = begun.elapsed();
    println!("{scenario:?} takes {took:?}, and {} ms there", verdict.at);
    assert_eq!(verdict.violations, [""; 0], "{}", verdict.log.join("\n"));
    // A million messages are counted; a second is plenty even on a busy machine.
    assert!(took < Duration::from_secs(1), "{took:?}");
    let phase = verdict.phase.map(PhaseName::as_str).unwrap_or_default();
    verdict.reason.unwrap_or_else(|| phase.to_owned())
}

#[test]
fn a_million_messages_and_a_slow_application_have_an_end() {
    let ends: Vec<String> = Scenario::loads().iter().map(end_of).collect();
    let forced = "Completed";
    let never_forced = "NoProgress";
    let (in_time, too_late, parked) = ("Completed", "DeadlineExceeded", "Completed");
    assert_eq!(ends, [forced, never_forced, in_time, too_late, parked]);
}

/// The same scenario with something going wrong at each of many moments.
fn at_all_times(scenario: &Scenario, fault: WorldFault) -> Tally {
    let end = run_logged(scenario.clone(), None).at;
    let mut all = Tally::default();
    for at in (0..end).step_by(7) {
        all.run(Scenario { faults: vec![Fault::World(at, fault)], ..scenario.clone() });
    }
    all
}

#[test]
fn a_second_migration_an_alarm_and_a_lost_session_change_nothing() {
    for scenario in Scenario::kinds() {
        for fault in [WorldFault::SecondMigration, WorldFault::SessionLost, WorldFault::Alarm] {
            let tally = at_all_times(&scenario, fault);
            assert_clean(&tally);
            let completed = tally.ends.get("Completed").copied().unwrap_or_default();
            println!("{fault:?}: {:?}", tally.ends);
            assert!(completed * 10 > tally.plans * 9, "{fault:?}: {:?}", tally.ends);
        }
    }
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
