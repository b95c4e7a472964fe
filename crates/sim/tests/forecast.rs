//! The forecast: as measured where it was measured, the same for the same options, and honest about
//! faults.

use shadow_protocol::spec::{ReplayMode, Strategy};
use shadow_sim::forecast::{Ending, FAULTS, FaultAt, Options, forecast};

fn options() -> Options {
    Options {
        rate: 60,
        service_micros: 2_000,
        backlog: 0,
        publishers: 4,
        checkpoint_mb: 15,
        bandwidth: 100_000_000,
        strategy: Strategy::ShadowPod,
        replay_mode: None,
        remembers_queue: true,
        seed: 1,
        fault: None,
    }
}

/// Ten migrations on the lab, checkpoint of 15 MB, 60 messages a second: from the least that was
/// measured to the most, a tenth added at both ends. The durations were fitted to these ten, so this
/// keeps the fit and proves nothing of other loads.
#[test]
fn at_sixty_messages_a_second_it_fits_what_the_lab_measured() {
    for seed in 1..=10 {
        let found = forecast(&Options { seed, ..options() }).unwrap();
        let near = |what: &str, millis: u64, least: u64, most: u64| {
            let range = least * 9 / 10..=most * 11 / 10;
            assert!(range.contains(&millis), "seed {seed}: {what} {millis} ms, not in {range:?}");
        };
        near("total", found.total_ms, 8_490, 9_700);
        near("pause", found.pause.for_ms, 286, 403);
        near("age", found.max_age_ms, 1_606, 2_451);
        for (name, least, most) in [
            ("checkpointing", 2_540, 2_670),
            ("transferring", 700, 1_580),
            ("restoring", 510, 710),
            ("finalizing", 4_340, 4_670),
        ] {
            let phase = found.phases.iter().find(|phase| phase.name == name).unwrap();
            near(name, phase.for_ms, least, most);
        }
        assert!(found.verdict.holds() && found.verdict.result == Ending::Completed);
        let parts: u64 = found.pause.parts.iter().map(|part| part.for_ms).sum();
        assert_eq!(parts, found.pause.for_ms, "the parts are the whole");
    }
}

#[test]
fn the_same_options_give_the_same_forecast_and_another_seed_another() {
    let first = forecast(&options()).unwrap();
    assert_eq!(first, forecast(&options()).unwrap());
    assert_ne!(first.steps, forecast(&Options { seed: 2, ..options() }).unwrap().steps);
}

#[test]
fn the_published_rate_is_the_one_asked_for() {
    for rate in [7, 60, 999, 12_345] {
        let found = forecast(&Options { rate, service_micros: 20, ..options() }).unwrap();
        let published = found.verdict.messages.unwrap().published;
        // The world begins a little before the migration, and ends a little after it.
        let expected = rate * (found.total_ms + 50) / 1_000;
        assert!(
            published.abs_diff(expected) <= 4 + rate / 40,
            "{published} at {rate}/s, not {expected}"
        );
    }
}

#[test]
fn a_deep_backlog_is_parked_unless_the_application_forgets() {
    let deep = Options { backlog: 100_000, ..options() };
    let mode = forecast(&deep).unwrap().mode.unwrap();
    assert_eq!(mode.mode, ReplayMode::Park);
    assert!(mode.reason.contains("199 s to work off"), "{}", mode.reason);
    let forgets = forecast(&Options { remembers_queue: false, ..deep }).unwrap();
    assert_eq!(forgets.mode.unwrap().mode, ReplayMode::Cutoff);
    assert!(forgets.total_ms > 200_000, "it works off the backlog first");
}

#[test]
fn an_application_that_is_too_slow_is_moved_by_cutoff_and_not_by_drain() {
    let slow = Options { rate: 600, ..options() };
    let drain = Options { replay_mode: Some(ReplayMode::Drain), ..slow.clone() };
    let drained = forecast(&drain).unwrap().verdict;
    assert_eq!(drained.result, Ending::RolledBack);
    assert_eq!(drained.reason.as_deref(), Some("NoProgress"));
    assert!(drained.holds());
    let cut = forecast(&Options { replay_mode: Some(ReplayMode::Cutoff), ..slow }).unwrap();
    assert_eq!(cut.verdict.result, Ending::Completed);
    assert!(cut.total_ms > 120_000, "the cutoff decides");
}

#[test]
fn every_fault_at_every_step_keeps_the_invariants() {
    let park = Options { replay_mode: Some(ReplayMode::Park), ..options() };
    let sequential = Options { strategy: Strategy::Sequential, ..options() };
    for kind in [options(), park, sequential] {
        let steps = forecast(&kind).unwrap().steps;
        let mut results = Vec::new();
        for step in steps.iter().filter(|step| step.name != "completed") {
            for (_, fault) in FAULTS {
                let fault = FaultAt { kind: fault, step: step.name.clone() };
                let options = Options { fault: Some(fault.clone()), ..kind.clone() };
                let found = forecast(&options).unwrap().verdict;
                assert!(found.holds(), "{fault} of {kind:?}: {found:?}");
                results.push(found.result);
            }
        }
        assert!(results.contains(&Ending::Completed) && results.contains(&Ending::RolledBack));
    }
}

#[test]
fn a_step_that_it_does_not_come_to_is_refused_with_those_it_comes_to() {
    let fault: FaultAt = "abort@park-stop".parse().unwrap();
    let error = forecast(&Options { fault: Some(fault), ..options() }).unwrap_err().to_string();
    assert!(error.contains("\"park-stop\"") && error.contains("checkpointing/cut-b"), "{error}");
}
