//! The exhaustive model: the protocol holds its invariants everywhere, mutants of it do not.

use shadow_sim::model::{Bounds, Exploration, explore};
use shadow_sim::mutant::MUTANTS;

/// Less of everything than `cargo xtask sim` explores.
const FEW: Bounds =
    Bounds { messages: &[1], prefetch: 1, crashes: 0, misfortunes: 1, remembers: false };

fn show(what: &str, found: &Exploration) {
    let Exploration { states, events, took, .. } = found;
    println!("{what}: {states} states, {events} events in {:.1} s", took.as_secs_f64());
    for (name, events) in &found.violated {
        println!("violated: {name}");
        for event in events {
            println!("  {event}");
        }
    }
    for name in &found.never {
        println!("never: {name}");
    }
}

#[test]
fn the_protocol_holds_its_invariants_in_every_situation() {
    let two = Bounds { messages: &[1, 1], misfortunes: 0, ..FEW };
    let crash = Bounds { crashes: 1, misfortunes: 0, ..FEW };
    for (what, bounds) in [("one message", FEW), ("two publishers", two), ("a crash", crash)] {
        let found = explore(bounds, None);
        show(what, &found);
        assert!(found.violated.is_empty() && found.never.is_empty(), "{what}");
    }
}

#[test]
fn every_mutant_of_it_is_refuted() {
    let two = Bounds { messages: &[1, 1], ..FEW };
    for mutant in MUTANTS {
        let found = explore(two, Some(mutant));
        show(&format!("{mutant:?}"), &found);
        assert!(!found.violated.is_empty(), "{mutant:?} survives");
    }
}
