//! What fuzzing begins with: see `fuzz/src/corpus.rs`.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/agent.rs"]
mod targets;

use corpus::run;

#[test]
fn uploads() {
    run("form", targets::form);
}

#[test]
fn orders_and_answers() {
    run("wire", targets::wire);
}
