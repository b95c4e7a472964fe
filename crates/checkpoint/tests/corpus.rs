//! What fuzzing begins with: see `fuzz/src/corpus.rs`.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/lib.rs"]
mod targets;

use corpus::run;

#[test]
fn archives() {
    run("archive", targets::archive);
}

#[test]
fn challenges() {
    run("challenge", targets::challenge);
}

#[test]
fn docker_configs() {
    run("docker_config", targets::docker_config);
}

#[test]
fn image_names() {
    run("image_ref", targets::image_ref);
}
