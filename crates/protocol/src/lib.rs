//! The pure core of SHADOW: what a migration is and what to do next.
//!
//! Nothing here knows of a clock, a network or a cluster. See [`names`], [`control`] and [`broker`]
//! for the vocabulary.
#![deny(missing_docs)]

pub mod broker;
pub mod control;
pub mod names;
