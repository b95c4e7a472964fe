//! Memory use does not depend on the archive's size. Alone in its process, so that the figure is its
//! own.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "registry/archive.rs"]
mod archive;
#[path = "registry/double.rs"]
#[allow(dead_code, reason = "it behaves here")]
mod double;

use shadow_checkpoint::{Client, ImageRef, push_checkpoint};

/// Bytes of the archive, and of memory that the process may have had at most.
const ARCHIVE: u64 = 300 << 20;
const MOST: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_archive_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.tar");
    archive::write_sparse(&path, ARCHIVE);
    let double = double::Double::start(None).await;
    let host = double.address.to_string();
    let client = Client::connect(&host, None, false).await.unwrap();
    let image: ImageRef = format!("{host}/checkpoints:a").parse().unwrap();
    let report = push_checkpoint(&client, &path, &image, "app").await.unwrap();
    assert!(report.bytes > ARCHIVE && double.received() > ARCHIVE);
    let peak = peak();
    assert!(peak < MOST, "{peak} bytes");
}

/// The largest resident memory so far.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
