//! What sealing the staging disk costs: `cargo bench -p shadow-agent`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the measurement"
)]

#[path = "../../checkpoint/tests/registry/archive.rs"]
mod archive;
#[path = "../tests/rig/mod.rs"]
mod rig;

use std::time::{Duration, Instant};

use rig::raw::Line;
use rig::{Node, SENDER, World};

const ARCHIVE: u64 = 256 << 20;
const ROUNDS: usize = 15;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let world = World::new();
    let node = async |plain| {
        let change = |settings: &mut shadow_agent::Settings| {
            settings.largest = 2 * ARCHIVE;
            settings.plain_staging = plain;
        };
        world.node_with(change).await
    };
    let (plain, sealed) = (node(true).await, node(false).await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    archive::write_sparse(&path, ARCHIVE);
    let layer = shadow_checkpoint::registry::blob_of_file(&path).unwrap();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        before.push(round(&plain, &path, &layer.digest).await);
        after.push(round(&sealed, &path, &layer.digest).await);
    }
    for (what, of) in [("taken in", 0), ("pulled", 1), ("both", 2)] {
        let (plain, sealed) = (median(&before, of), median(&after, of));
        let more = (sealed / plain - 1.0) * 100.0;
        println!("{what}: plain {plain:.0} ms, sealed {sealed:.0} ms, {more:+.1} %");
    }
}

/// How long it takes to take an archive in, to have it pulled, and both.
async fn round(node: &Node, path: &std::path::Path, layer: &str) -> [Duration; 3] {
    node.expect("a").await;
    let begun = Instant::now();
    node.agent(SENDER).upload("a", path, "app").await.unwrap();
    let taken = begun.elapsed();
    let begun = Instant::now();
    let mut line = Line::to_registry(node).await;
    let request =
        format!("GET /v2/ms2m/a/blobs/{layer} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    line.say(request).await.unwrap();
    let read = tokio::io::copy(&mut line.0, &mut tokio::io::sink()).await.unwrap();
    assert!(read > ARCHIVE);
    let pulled = begun.elapsed();
    node.forget("a").await;
    [taken, pulled, taken + pulled]
}

/// In milliseconds.
fn median(rounds: &[[Duration; 3]], of: usize) -> f64 {
    let mut times: Vec<_> = rounds.iter().map(|round| round[of]).collect();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
