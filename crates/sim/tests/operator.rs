//! The operator's own loop, from a `StatefulMigration` to its end, under plans of faults.

use shadow_broker::memory;
use shadow_sim::scenario::OwnerKind;
use shadow_sim::shop::campaign::{self, Tally};
use shadow_sim::shop::plan::{Call, Fault, Plan, REQUEST_FAULTS};
use shadow_sim::shop::{run, run_logged};

#[expect(clippy::panic, reason = "the failure is the report")]
fn assert_clean(plan: &Plan) -> String {
    let verdict = run(plan);
    if verdict.violations.is_empty() {
        return verdict.end;
    }
    let plan = campaign::shrink(plan.clone());
    let verdict = run_logged(&plan);
    panic!("{plan:#?}\n{}\n{:#?}\n{:#?}", verdict.log.join("\n"), verdict.left, verdict.violations)
}

/// A plan of one kind of workload, in which only `faults` go wrong.
fn plan(seed: u64, faults: Vec<Fault>) -> Plan {
    Plan { faults, ..Plan::from_seed(seed) }
}

/// A bare pod, one of a Deployment, one of a StatefulSet and one that leaves its StatefulSet, whose
/// migrations complete when nothing goes wrong.
const ORDINARY: [u64; 4] = [1, 4, 21, 26];

#[test]
fn the_ordinary_ones_are_one_of_each_kind() {
    let owners = ORDINARY.map(|seed| Plan::from_seed(seed).scenario.owner);
    assert_eq!(
        owners,
        [OwnerKind::Bare, OwnerKind::Deployment, OwnerKind::StatefulSet, OwnerKind::Shrinking]
    );
}

#[test]
fn random_plans() {
    let tally: Tally = campaign::plans(0, 300);
    println!("{} plans: {:?}", tally.plans, tally.ends);
    for seed in &tally.failures {
        println!("seed {seed}");
        assert_clean(&Plan::from_seed(*seed));
    }
    let completed = tally.ends.get("Completed").copied().unwrap_or_default();
    assert!(completed * 4 > tally.plans * 3, "most faults are survived: {:?}", tally.ends);
}

#[test]
fn without_a_fault_everything_is_moved() {
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    for seed in 0..60 {
        *ends.entry(assert_clean(&plan(seed, Vec::new()))).or_default() += 1;
    }
    println!("{ends:?}");
    // Who acknowledges late on a quorum queue looks like two consumers.
    assert!(ends["Completed"] > 50, "{ends:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        let plan = Plan::from_seed(seed);
        assert_eq!(run_logged(&plan), run_logged(&plan), "seed {seed}");
    }
}

#[test]
fn every_fault_at_every_request() {
    // Each of one workload's, every third of the others'.
    for (seed, step) in ORDINARY.into_iter().zip([1, 3, 3, 3]) {
        let requests = run(&plan(seed, Vec::new())).requests;
        for nth in (0..requests).step_by(step) {
            for fault in REQUEST_FAULTS {
                assert_clean(&plan(seed, vec![Fault::Request(nth, fault)]));
            }
        }
    }
}

#[test]
fn an_operator_that_dies_at_any_request_is_followed_by_another() {
    let (mut runs, mut completed) = (0, 0);
    for seed in ORDINARY {
        let requests = run(&plan(seed, Vec::new())).requests;
        for (nth, reaches) in (0..requests).flat_map(|nth| [(nth, false), (nth, true)]) {
            let killed = Fault::Killed { at: Call::Request(nth), reaches, away: 100 };
            completed += u32::from(assert_clean(&plan(seed, vec![killed])) == "Completed");
            runs += 1;
        }
    }
    println!("{completed} of {runs} completed");
    // Only who dies while the target is created leaves his successor in doubt.
    assert!(runs > 300 && runs - completed <= 8, "{completed} of {runs} completed");
}

#[test]
fn an_operator_that_dies_at_a_call_of_the_broker_is_followed_by_another() {
    for seed in ORDINARY {
        for (nth, reaches) in (0..400).step_by(7).flat_map(|nth| [(nth, false), (nth, true)]) {
            assert_clean(&plan(
                seed,
                vec![Fault::Killed { at: Call::Broker(nth), reaches, away: 100 }],
            ));
            let fault = if reaches { memory::Fault::After } else { memory::Fault::Cut };
            assert_clean(&plan(seed, vec![Fault::Broker(nth, fault)]));
        }
    }
}

#[test]
fn a_watch_that_must_begin_anew_loses_nothing() {
    for seed in ORDINARY {
        for at in (0..8_000).step_by(200) {
            assert_eq!(assert_clean(&plan(seed, vec![Fault::WatchesCut(at)])), "Completed");
        }
    }
}
