//! One committed file of inputs and answers holds the Rust and the Python ledger together.
//! After a deliberate change: `UPDATE_VECTORS=1 cargo test -p shadow-workloads --test ledger_vectors`.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use shadow_workloads::clock::Moment;
use shadow_workloads::ledger::Ledger;
use shadow_workloads::message::Message;

const CASES: usize = 24;
const SEED: [u8; 32] = [7; 32];
const EPOCH: u64 = 1_760_000_000_000;

#[derive(Clone, Debug)]
enum Event {
    Apply { message: Message, redelivered: bool, after_ms: i64 },
    Reset { after_ms: i64 },
}

/// Sequences with gaps, duplicates, inversions, republications, resets, pauses and clocks that
/// step back.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let after = || prop_oneof![20 => 0i64..30, 2 => 30i64..5_000, 1 => -50i64..0];
    let republication = prop_oneof![9 => Just(0u32), 1 => 1u32..3];
    let apply = (0u8..3, 1u64..30, -100i64..400, republication, any::<bool>(), after());
    let apply = apply.prop_map(|(publisher, seq, age, republication, redelivered, after_ms)| {
        let published_at = EPOCH.saturating_add_signed(seq.cast_signed() * 20 - age);
        let publisher = format!("p-{publisher}");
        let message = Message { publisher, seq, published_at, republication };
        Event::Apply { message, redelivered, after_ms }
    });
    let reset = after().prop_map(|after_ms| Event::Reset { after_ms });
    prop::collection::vec(prop_oneof![25 => apply, 1 => reset], 0..60)
}

fn case(events: Vec<Event>) -> Value {
    let mut now = Moment { unix_ms: EPOCH, mono_ms: 5_000 };
    let start = json!([now.unix_ms, now.mono_ms]);
    let mut ledger = Ledger::new(now);
    let mut advance = |after_ms: i64| {
        now.unix_ms = now.unix_ms.saturating_add_signed(after_ms);
        now.mono_ms += after_ms.unsigned_abs() / 2;
        now
    };
    let mut written = Vec::new();
    for event in events {
        written.push(match event {
            Event::Apply { message, redelivered, after_ms } => {
                let at = advance(after_ms);
                ledger.apply(&message, redelivered, at);
                json!({"message": message, "redelivered": redelivered,
                       "at": [at.unix_ms, at.mono_ms]})
            }
            Event::Reset { after_ms } => {
                let at = advance(after_ms);
                ledger.reset_window(at);
                json!({"reset": [at.unix_ms, at.mono_ms]})
            }
        });
    }
    json!({"start": start, "events": written, "report": ledger.report()})
}

fn cases() -> Vec<Value> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &SEED);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let next = |_| case(events().new_tree(&mut runner).expect("a case").current());
    (0..CASES).map(next).collect()
}

#[test]
fn the_rust_ledger_gives_the_committed_answers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ledger_vectors.json");
    let cases = cases();
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        let lines: Vec<_> = cases.iter().map(Value::to_string).collect();
        std::fs::write(&path, format!("[\n{}\n]\n", lines.join(",\n"))).expect("write vectors");
    }
    let committed = std::fs::read_to_string(&path).expect("read vectors");
    let committed: Vec<Value> = serde_json::from_str(&committed).expect("vectors are JSON");
    assert_eq!(committed.len(), cases.len());
    for (number, (committed, now)) in committed.iter().zip(&cases).enumerate() {
        assert_eq!(committed, now, "case {number}");
    }
}

#[test]
fn the_python_ledger_gives_the_committed_answers() {
    let python = Command::new("python3")
        .args(["-m", "unittest", "-v", "test_ledger"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&python.stderr);
    assert!(python.status.success() && said.contains("Ran 1 test"), "{said}");
}
