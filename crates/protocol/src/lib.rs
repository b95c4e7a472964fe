//! The pure core of SHADOW: what a migration is and what to do next.
//!
//! ```text
//! Pending → Checkpointing → Transferring → Restoring → Replaying → Finalizing → Completed
//!              └──────────────┴──────────────┴────────────┴────────────┤ source proved gone:
//!                                     Unwinding → Failed               │ the commit point
//! ```
//!
//! [`decide::decide`] takes what is stored ([`phase::State`]) and what is seen
//! ([`observation::Observation`]) and says what to store next and what to do then
//! ([`effect::Effect`]). Nothing here knows of a clock, a network or a cluster.
#![deny(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alone;
pub mod broker;
pub mod control;
pub mod decide;
pub mod effect;
mod facts;
pub mod freeze;
mod handoff;
mod hop;
pub mod janitor;
pub mod names;
pub mod observation;
mod park;
pub mod pending;
pub mod phase;
mod remove;
mod sequential;
mod set_back;
pub mod spec;
pub mod step;
mod still;
mod switch;
pub mod time;
mod transitions;
mod unwind;

#[cfg(test)]
mod tests;
