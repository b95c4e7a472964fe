//! `RabbitMQ`'s semantics in memory, for simulators, models and tests; never part of the operator.

pub mod core;
