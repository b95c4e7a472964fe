//! Memory use does not depend on the archive's size. Alone in its process, so that the figure is its
//! own.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "registry/archive.rs"]
mod archive;
#[path = "registry/double.rs"]
#[allow(dead_code, reason = "it behaves here")]
mod double;
#[path = "registry/tokens.rs"]
mod tokens;

use shadow_checkpoint::{Client, ImageRef, push_checkpoint};

/// Bytes of the archive, and of memory that the push and the double may take together.
const ARCHIVE: u64 = 2 << 30;
const MOST: u64 = 32 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_archive_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.tar");
    archive::write_sparse(&path, ARCHIVE);
    let double = double::Double::start(double::Lock::Open).await;
    let host = double.address.to_string();
    let client = Client::connect(&host, None, false).await.unwrap();
    let image: ImageRef = format!("{host}/checkpoints:a").parse().unwrap();
    let before = resident("VmRSS:");
    let report = push_checkpoint(&client, &path, &image, "app").await.unwrap();
    assert!(report.bytes > ARCHIVE && double.received() > ARCHIVE && double.parts().len() > 30);
    let grown = resident("VmHWM:") - before;
    assert!(grown < MOST, "{grown} bytes on top of {before}");
}

/// Resident memory in bytes: now (`VmRSS:`), or at most so far (`VmHWM:`).
fn resident(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
