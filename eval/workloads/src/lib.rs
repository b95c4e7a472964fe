//! The workload that the demo, the end-to-end tests and the evaluation migrate and measure: a
//! producer with publisher confirms, a consumer that obeys the control messages of the
//! specification and keeps a [`ledger`] in memory, and a probe that measures what a client of
//! the consumer's Service sees.
//!
//! `consumer.py` beside this crate is the same consumer as an ordinary user would write it; both
//! keep the same ledger (`tests/ledger_vectors.json` proves it). Nothing here knows the operator:
//! only the control messages are shared.

pub mod broker;
pub mod clock;
pub mod consumer;
pub mod http;
pub mod ledger;
pub mod message;
pub mod probe;
pub mod producer;
pub mod random;
