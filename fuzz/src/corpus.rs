//! The inputs that fuzzing begins with, through what it fuzzes: those named `good-…` are taken, those
//! named `bad-…` are not, and what fuzzing once found (any other name) breaks nothing.
//!
//! The tests of the crates whose functions they are share it, each by its path.

use std::path::Path;

/// Runs what is in the corpus of `target`.
pub fn run(target: &str, function: fn(&[u8]) -> bool) {
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
