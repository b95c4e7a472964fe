//! Memory use does not depend on what comes in or goes out. Alone in its process, so that the figures
//! are its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the test"
)]

#[path = "../../checkpoint/tests/registry/archive.rs"]
mod archive;
mod rig;

use rig::raw::{Line, ask_registry, field, form, head, length};
use rig::{SENDER, World, archives};

/// Bytes of the archive, and by how much memory may have grown: for an agent, and for two and what
/// is between them.
const ARCHIVE: u64 = 512 << 20;
const ALONE: u64 = 32 << 20;
const BOTH: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_archive_takes_no_memory() {
    let world = World::new();
    let large = |settings: &mut shadow_agent::Settings| settings.largest = 2 * ARCHIVE;
    let (source, target) = (world.node_with(large).await, world.node_with(large).await);
    target.is_well().await;

    // From a sender that keeps nothing.
    let before = start_measuring();
    target.expect("zeros").await;
    let mut line = Line::to(&target).await;
    let (name, content) = (field("containerName", b"app"), field("checkpoint", b""));
    let (size, around) = (ARCHIVE, (name.len() + content.len()) as u64);
    line.say(head("zeros", SENDER, &length(size + around))).await.unwrap();
    line.say(name).await.unwrap();
    line.say(&content[..content.len() - 2]).await.unwrap();
    let zeros = vec![0; 1 << 16];
    for _ in 0..size / zeros.len() as u64 {
        line.say(&zeros).await.unwrap();
    }
    line.say("\r\n").await.unwrap();
    let (status, why, _) = line.answer(true).await.refused();
    assert_eq!(status, 400, "{why}");
    let grown = peak() - before;
    println!("taking in {size} bytes: {grown} bytes");
    assert!(grown < ALONE, "{grown} bytes");

    // From one agent to the other, which hashes, writes, reads and offers it.
    let path = source.archive(b"");
    archive::write_sparse(path.as_ref(), ARCHIVE);
    target.expect("a").await;
    let before = start_measuring();
    let arrived = source.send("a", &path, &target).await.unwrap();
    assert!(arrived.bytes > ARCHIVE);
    let grown = peak() - before;
    println!("sending and taking in {} bytes: {grown} bytes", arrived.bytes);
    assert!(grown < BOTH, "{grown} bytes");

    // To the runtime, which keeps nothing here either.
    let before = start_measuring();
    let path = format!("/v2/ms2m/a/manifests/{}", arrived.digest);
    assert_eq!(ask_registry(&target, "GET", &path).await.status, 200);
    let read = read_layer(&target, &arrived.digest).await;
    assert!(read > ARCHIVE, "{read} bytes");
    let grown = peak() - before;
    println!("offering {read} bytes: {grown} bytes");
    assert!(grown < ALONE, "{grown} bytes");

    many_peers_take_little_memory(&world).await;
}

/// Two hundred peers, each with as much as is kept of one, and then with an upload.
async fn many_peers_take_little_memory(world: &World) {
    let change = |settings: &mut shadow_agent::Settings| {
        settings.waiting = 200;
        settings.patience.piece = std::time::Duration::from_mins(10);
        settings.patience.headers = std::time::Duration::from_mins(1);
    };
    let node = world.node_with(change).await;
    node.is_well().await;
    let before = start_measuring();
    let mut lines = Vec::new();
    for _ in 0..200 {
        let mut line = Line::to(&node).await;
        line.say(format!("GET /healthz HTTP/1.1\r\nA: {}", "b".repeat(60 << 10))).await.unwrap();
        lines.push(line);
    }
    let grown = peak() - before;
    println!("200 strangers: {grown} bytes");
    assert!(grown < BOTH, "{grown} bytes");
    drop(lines);

    let form: std::sync::Arc<[u8]> = form(&archives::good(4 << 20, 1)).into();
    let before = start_measuring();
    let mut uploads = tokio::task::JoinSet::new();
    for number in 0..200 {
        let transfer = format!("t-{number}");
        node.expect(&transfer).await;
        let (mut line, form) = (Line::to(&node).await, form.clone());
        uploads.spawn(async move {
            line.say(head(&transfer, SENDER, &length(form.len() as u64))).await.unwrap();
            line.say(&form).await.unwrap();
            assert_eq!(line.answer(true).await.status, 200);
        });
    }
    while let Some(upload) = uploads.join_next().await {
        upload.unwrap();
    }
    let grown = peak() - before;
    println!("200 uploads of 4 MiB: {grown} bytes");
    assert!(grown < BOTH, "{grown} bytes");
}

/// Reads the layer of the image with the digest `index`; its size.
async fn read_layer(node: &rig::Node, index: &str) -> u64 {
    let json = async |kind: &str, digest: &str| {
        let path = format!("/v2/ms2m/a/{kind}/{digest}");
        let answer = ask_registry(node, "GET", &path).await;
        serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()
    };
    let index = json("manifests", index).await;
    let manifest = json("manifests", index["manifests"][0]["digest"].as_str().unwrap()).await;
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let mut line = Line::to_registry(node).await;
    let request =
        format!("GET /v2/ms2m/a/blobs/{layer} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    line.say(request).await.unwrap();
    tokio::io::copy(&mut line.0, &mut tokio::io::sink()).await.unwrap()
}

/// The resident memory now, which is the largest so far from now on.
fn start_measuring() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    peak()
}

/// The largest resident memory so far.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
