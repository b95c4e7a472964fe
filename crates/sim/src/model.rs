//! A small exhaustive model: the real protocol in every situation that a few messages, a crash and
//! a change of mind can bring about.
//!
//! Where the simulator draws plans of faults from a seed, here every order of events is explored
//! (with `stateright`): what publishers, applications, pods, the user and the clock do, and where
//! the operator crashes. The protocol is [`shadow_protocol::decide`] itself and the broker is
//! [`shadow_broker::memory::core`].
//!
//! What is one event, and why nothing is lost by it:
//!
//! - *Observing, deciding and storing*: nobody else reads what is stored; a crash in between is one
//!   before, and what happens in between can as well happen before the first effect.
//! - *Applying and acknowledging a message*: a process that ends takes along what it has applied
//!   and not acknowledged, so nobody can tell the one from the other.
//! - *Publishing and arriving*: a message on its way is as good as not published until the routes
//!   change; so what trails is chosen with the effect that changes them.
//! - *Effects that nobody else can notice* are carried out before anybody else does anything; the
//!   operator may crash between any two.
//!
//! Time is a matter of its own: see `model/clock.rs`. A crash is short, or longer than every timer.
//!
//! Left to the simulator: lost connections, calls that fail or are repeated, owners that replace
//! pods, targets that die, strategy Sequential, observations made of reads at different instants.

mod application;
mod clock;
mod handoff;
mod operator;
mod oracle;
mod situation;
mod wire;

use std::time::{Duration, Instant};

use stateright::{Checker as _, Expectation, HasDiscoveries, Model as _, Property};

use crate::mutant::Mutant;
use handoff::{Handoff, describe};
use operator::Constants;

/// As many as CI has.
const THREADS: usize = 2;

/// How much there is of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The messages of each publisher, at most 7.
    pub messages: &'static [u8],
    /// Messages that an application is sent before it has acknowledged.
    pub prefetch: u64,
    /// Crashes of the operator.
    pub crashes: u8,
    /// Of these so many in a run: the user aborts; the source dies (its pod goes, or its container
    /// is restarted); deliveries trail for longer than the ebb.
    pub misfortunes: u8,
    /// In mode `Replay`, applications return to the queue they were told to consume when they
    /// connect; in mode `Park` they always do.
    pub remembers: bool,
}

/// What is explored in full. Everything at once would be tens of millions of situations, so each
/// has less of something.
pub const WHOLE: [Bounds; 3] = [
    // Crashes among several messages of one publisher and another's.
    Bounds { messages: &[2, 1], prefetch: 1, crashes: 1, misfortunes: 0, remembers: true },
    // Misfortunes among messages of two publishers.
    Bounds { messages: &[1, 1], prefetch: 1, crashes: 0, misfortunes: 1, remembers: false },
    // Crashes and misfortunes together.
    Bounds { messages: &[1], prefetch: 1, crashes: 1, misfortunes: 1, remembers: false },
];

/// What was found.
#[derive(Debug, Clone)]
pub struct Exploration {
    /// Different situations.
    pub states: usize,
    /// Events between them.
    pub events: usize,
    /// How long it took.
    pub took: Duration,
    /// Invariants that do not hold, each with the events that lead to a counterexample.
    pub violated: Vec<(&'static str, Vec<String>)>,
    /// What should be possible and never happens.
    pub never: Vec<&'static str>,
}

/// Explores the whole space; of a `mutant`, no further than to a counterexample.
pub fn explore(bounds: Bounds, mutant: Option<Mutant>) -> Exploration {
    let begun = Instant::now();
    let handoff = Handoff { bounds, constants: Constants::new(mutant) };
    let properties = handoff.properties();
    let until = mutant.map_or(HasDiscoveries::All, |_| HasDiscoveries::AnyFailures);
    let checker = handoff.checker().threads(THREADS).finish_when(until).spawn_bfs().join();
    let found = checker.discoveries();
    let (mut violated, mut never) = (Vec::new(), Vec::new());
    for Property { name, expectation, .. } in properties {
        match (expectation, found.get(name)) {
            (Expectation::Sometimes, None) => never.push(name),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(path)) => {
                let events = path.clone().into_actions();
                violated.push((name, events.iter().map(describe).collect()));
            }
        }
    }
    Exploration {
        states: checker.unique_state_count(),
        events: checker.state_count(),
        took: begun.elapsed(),
        violated,
        never,
    }
}
