//! The inputs that fuzzing begins with, as in `crates/checkpoint/tests/corpus.rs`.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "../../../fuzz/src/agent.rs"]
mod targets;

use std::path::Path;

fn run(target: &str, function: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut taken = Vec::new();
    for file in folder.read_dir().unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let is_taken = function(&std::fs::read(&file).unwrap());
        assert!(!name.starts_with("good-") || is_taken, "{target}/{name} is refused");
        assert!(!name.starts_with("bad-") || !is_taken, "{target}/{name} is taken");
        taken.push(is_taken);
    }
    assert!(taken.contains(&true) && taken.contains(&false), "{target}: {} files", taken.len());
}

#[test]
fn uploads() {
    run("form", targets::form);
}

#[test]
fn orders_and_answers() {
    run("wire", targets::wire);
}
