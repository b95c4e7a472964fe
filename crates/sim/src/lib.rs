//! A deterministic world for the handoff protocol.
//!
//! The broker in memory, a cluster with controllers that do what the real ones do,
//! publishers, applications with their habits, an operator that crashes, and a clock: all of it
//! follows from a seed. The protocol in it is the real one; nothing here knows how a migration goes.

#![deny(missing_docs)]

pub mod application;
pub mod campaign;
pub mod cluster;
pub mod forecast;
pub mod kube;
pub mod log;
pub mod message;
#[cfg(feature = "model")]
pub mod model;
pub mod mutant;
pub mod record;
pub mod scenario;
#[cfg(feature = "shop")]
pub mod shop;
pub mod tempo;
pub mod verdict;
mod watch;
pub mod world;

use log::Log;
use mutant::Mutant;
use scenario::Scenario;
use verdict::Verdict;
use world::World;

/// Runs a scenario.
pub fn run(scenario: Scenario, mutant: Option<Mutant>) -> Verdict {
    World::new(scenario, mutant, Log::default()).run()
}

/// Runs a scenario and keeps its log.
pub fn run_logged(scenario: Scenario, mutant: Option<Mutant>) -> Verdict {
    World::new(scenario, mutant, Log::kept()).run()
}
