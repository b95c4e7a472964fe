//! A deterministic world for the operator: it runs the operator's own code against an API server,
//! nodes and controllers that live in memory, on tokio's paused clock.
//!
//! Nothing in here reads another clock than `shadow_operator::clock`, takes a random number that does
//! not come from a given seed, or keeps anything in an order that changes from run to run.

pub mod kube;
