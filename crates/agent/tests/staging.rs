//! What lies on the staging disk, and what the runtime gets of it when somebody has been there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the test"
)]

mod rig;

use std::path::Path;

use rig::raw::{Line, ask_registry};
use rig::{Node, SENDER, World, archives};
use shadow_checkpoint::registry::digest;
use tokio::io::AsyncReadExt as _;

/// A node that has taken `archive` in.
async fn with(archive: &[u8], plain: bool) -> Node {
    let node = World::new().node_with(|settings| settings.plain_staging = plain).await;
    let path = node.archive(archive);
    node.expect("a").await;
    node.agent(SENDER).upload("a", path.as_ref(), "app").await.unwrap();
    node
}

fn staged(node: &Node) -> std::path::PathBuf {
    let [staged] = node.staged().try_into().unwrap();
    staged
}

/// All that the runtime hears when it asks for the archive, until the agent hangs up.
async fn heard(node: &Node, archive: &[u8]) -> Vec<u8> {
    let mut line = Line::to_registry(node).await;
    let path = format!("/v2/ms2m/a/blobs/{}", digest(archive));
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    line.say(request).await.unwrap();
    let mut heard = Vec::new();
    // An answer that breaks off ends without a farewell.
    let _ = line.0.read_to_end(&mut heard).await;
    let body = heard.windows(4).position(|four| four == b"\r\n\r\n");
    body.map_or_else(Vec::new, |body| heard[body + 4..].to_vec())
}

/// How many of the pieces of `archive` are in `file` as they are.
fn pieces_in(archive: &[u8], file: &Path) -> usize {
    const PIECE: usize = 24;
    let on_disk = std::fs::read(file).unwrap();
    let pieces: std::collections::HashSet<&[u8]> = archive.chunks_exact(PIECE).collect();
    on_disk.windows(PIECE).filter(|window| pieces.contains(window)).count()
}

#[tokio::test]
async fn nothing_of_an_archive_can_be_read_on_the_disk() {
    let archive = archives::good(700_000, 1);
    let node = with(&archive, false).await;
    assert_eq!(pieces_in(&archive, &staged(&node)), 0);
    assert!(heard(&node, &archive).await == archive, "the runtime reads what came");
    // The test would notice.
    let node = with(&archive, true).await;
    assert!(pieces_in(&archive, &staged(&node)) > archive.len() / 24);
    assert!(std::fs::read(staged(&node)).unwrap() == archive);
    assert!(heard(&node, &archive).await == archive, "the runtime reads what came");
}

#[tokio::test]
async fn what_was_changed_on_the_disk_is_not_given_to_the_runtime() {
    let archive = archives::good(2_000_000, 1);
    let node = with(&archive, false).await;
    let file = staged(&node);
    let good = std::fs::read(&file).unwrap();
    for at in [0, 300_000, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&file, &bad).unwrap();
        breaks_off(&node, &archive, at).await;
    }
    for left in [0, 100_000, (256 << 10) + 16, good.len() - 1] {
        std::fs::write(&file, &good[..left]).unwrap();
        breaks_off(&node, &archive, left).await;
    }
    std::fs::write(&file, &good).unwrap();
    assert!(heard(&node, &archive).await == archive);
    node.forget("a").await;
    node.is_well().await;
}

/// The answer is right as far as it goes, and it does not go beyond what is wrong on the disk.
async fn breaks_off(node: &Node, archive: &[u8], wrong: usize) {
    let heard = heard(node, archive).await;
    assert!(heard.len() <= wrong, "{} bytes, and byte {wrong} is wrong", heard.len());
    assert!(archive.starts_with(&heard), "byte {wrong} is wrong");
}

#[tokio::test]
async fn an_archive_that_is_gone_is_said_to_be_gone() {
    let archive = archives::good(10_000, 1);
    let node = with(&archive, false).await;
    std::fs::remove_file(staged(&node)).unwrap();
    let path = format!("/v2/ms2m/a/blobs/{}", digest(&archive));
    let (status, why, passing) = ask_registry(&node, "GET", &path).await.refused();
    assert_eq!((status, passing), (500, true), "{why}");
    node.forget("a").await;
    node.is_well().await;
}
