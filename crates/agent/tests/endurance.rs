//! Peers that are slow, many, at once, or gone; a disk and a memory that are not endless.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the test"
)]

mod rig;

use std::time::Duration;

use rig::raw::{Line, form, head, length};
use rig::{Node, SENDER, World, archives, eventually, refused};
use shadow_agent::Settings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const SHORT: Duration = Duration::from_secs(1);
/// Nothing that has a short time takes as long, however busy the machine is.
const LONG: Duration = Duration::from_mins(1);

/// No more patience than a test has, in one respect.
fn impatient(change: impl FnOnce(&mut shadow_agent::Patience)) -> impl FnOnce(&mut Settings) {
    |settings| change(&mut settings.patience)
}

async fn soon<T>(what: &str, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, done).await.unwrap_or_else(|_| panic!("{what}"))
}

/// An upload of which half was sent; the rest.
async fn half(node: &Node, transfer: &str, archive: &[u8]) -> (Line, Vec<u8>) {
    let mut form = form(archive);
    let mut line = Line::to(node).await;
    line.say(head(transfer, SENDER, &length(form.len() as u64))).await.unwrap();
    let rest = form.split_off(form.len() / 2);
    line.say(&form).await.unwrap();
    (line, rest)
}

#[tokio::test]
async fn a_peer_that_never_says_hello_is_hung_up_on() {
    let node = World::new().node_with(impatient(|patience| patience.headers = SHORT)).await;
    for address in [node.running.address, node.running.registry] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let heard = soon("silence is not suffered", socket.read(&mut [0; 16])).await;
        assert!(matches!(heard, Ok(0) | Err(_)), "{heard:?}");
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
        soon("what is not TLS is not suffered", socket.read_to_end(&mut Vec::new())).await.ok();
    }
    node.is_well().await;
}

#[tokio::test]
async fn headers_have_to_come_in_time() {
    let node = World::new().node_with(impatient(|patience| patience.headers = SHORT)).await;
    let mut line = Line::to(&node).await;
    let dribble = async {
        line.say("GET /healthz HTTP/1.1\r\nA: ").await.unwrap();
        while line.say("b").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    soon("dribbling headers are not suffered", dribble).await;
    // Who keeps a connection has to use it.
    let mut line = Line::to(&node).await;
    line.say("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(line.answer(true).await.status, 200);
    soon("an idle connection ends", line.is_hung_up()).await;
    node.is_well().await;
}

#[tokio::test]
async fn headers_that_are_too_long_are_not_kept() {
    let node = World::new().node().await;
    let mut line = Line::to(&node).await;
    let _ = line.say(format!("GET /healthz HTTP/1.1\r\nA: {}", "b".repeat(8 << 20))).await;
    line.is_hung_up().await;
    node.is_well().await;
}

#[tokio::test]
async fn a_body_has_to_come_in_time() {
    let world = World::new();
    let archive = archives::good(100_000, 1);
    // Nothing comes any more.
    let node = world.node_with(impatient(|patience| patience.piece = SHORT)).await;
    node.expect("a").await;
    let (mut line, _rest) = half(&node, "a", &archive).await;
    let (status, why, passing) = line.answer(true).await.refused();
    assert_eq!((status, passing), (408, true));
    assert!(why.contains("the upload is too slow: nothing came for"), "{why}");
    node.is_well().await;
    // Something comes all the time, and never much: whatever length it claims.
    let node = world.node_with(impatient(|patience| patience.upload = SHORT)).await;
    node.expect("a").await;
    let mut line = Line::to(&node).await;
    line.say(head("a", SENDER, &length(rig::LARGEST))).await.unwrap();
    let dribble = async {
        line.say(&form(&archive)[..10_000]).await.unwrap();
        while tokio::time::timeout(SHORT / 10, line.0.get_ref().0.readable()).await.is_err() {
            line.say("b").await.unwrap();
        }
        line.answer(true).await.refused()
    };
    let (status, why, passing) = soon("a dribbling body is not suffered", dribble).await;
    assert_eq!((status, passing), (408, true), "{why}");
    assert!(why.contains("the upload is too slow"), "{why}");
    drop(line);
    eventually("nothing stays", || node.staged().is_empty()).await;
}

#[tokio::test]
async fn an_order_has_to_come_in_time() {
    let node = World::new().node_with(impatient(|patience| patience.piece = SHORT)).await;
    let mut line = Line::to(&node).await;
    let head = "POST /forget HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\
                Authorization: Bearer token-of-the-operator\r\n\r\n{";
    line.say(head).await.unwrap();
    let (status, why, passing) = line.answer(true).await.refused();
    assert_eq!((status, passing), (408, true), "{why}");
    assert!(why.contains("the order did not come within"), "{why}");
    node.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_listen_is_hung_up_on() {
    let node = World::new().node_with(impatient(|patience| patience.piece = SHORT)).await;
    let archive = archives::good(48 << 20, 1);
    let tar_path = node.archive(&archive);
    node.load("a", &tar_path).await.unwrap();
    let path = format!("/v2/ms2m/a/blobs/{}", shadow_checkpoint::registry::digest(&archive));
    let mut line = Line::to_registry(&node).await;
    line.say(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await.unwrap();
    // The agent's own deadline passes.
    tokio::time::sleep(SHORT * 3).await;
    let mut heard = Vec::new();
    let _ = soon("the connection ended", line.0.read_to_end(&mut heard)).await;
    assert!(heard.len() < archive.len(), "{} bytes", heard.len());
    node.is_well().await;
}

#[tokio::test]
async fn half_an_upload_leaves_nothing() {
    let node = World::new().node().await;
    node.expect("a").await;
    let archive = archives::good(2_000_000, 1);
    let path = node.archive(&archive);
    for _ in 0..5 {
        let (line, _rest) = half(&node, "a", &archive).await;
        eventually("half of it is written", || node.staged().len() == 1).await;
        drop(line);
        eventually("nothing stays", || node.staged().is_empty()).await;
    }
    node.agent(SENDER).upload("a", path.as_ref(), "app").await.unwrap();
    node.forget("a").await;
    node.is_well().await;
}

#[tokio::test]
async fn of_two_uploads_one_is_taken_and_both_are_answered() {
    let node = World::new().node().await;
    node.expect("a").await;
    let archive = archives::good(2_000_000, 1);
    let path = node.archive(&archive);
    let (mut line, rest) = half(&node, "a", &archive).await;
    eventually("the first one is taken", || node.staged().len() == 1).await;
    let sender = node.agent(SENDER);
    let second = tokio::spawn(async move { sender.upload("a", path.as_ref(), "app").await });
    line.say(&rest).await.unwrap();
    let first = line.answer(true).await;
    let first = serde_json::from_slice(&first.body).unwrap();
    assert_eq!(second.await.unwrap().unwrap(), first);
    assert_eq!(node.staged().len(), 1);
    node.forget("a").await;
    node.is_well().await;
}

#[tokio::test]
async fn nobody_waits_for_ever_at_the_door() {
    let world = World::new();
    let change = |settings: &mut Settings| {
        settings.at_once = 1;
        settings.patience.piece = 2 * SHORT;
    };
    let node = world.node_with(change).await;
    node.expect("a").await;
    node.expect("b").await;
    let archive = archives::good(100_000, 1);
    let path = node.archive(&archive);
    let (mut line, _rest) = half(&node, "a", &archive).await;
    eventually("the first one is taken", || node.staged().len() == 1).await;
    let upload = async |transfer: &'static str| {
        refused(node.agent(SENDER).upload(transfer, path.as_ref(), "app").await)
    };
    let (same, other) = tokio::join!(upload("a"), upload("b"));
    for (answer, words) in [(same, "another upload"), (other, "too many checkpoints come in")] {
        assert_eq!((answer.0, answer.2), (503, true), "{}", answer.1);
        assert!(answer.1.contains(words), "{}", answer.1);
    }
    assert_eq!(line.answer(true).await.status, 408);
    node.is_well().await;
}

#[tokio::test]
async fn an_upload_ends_when_its_transfer_is_forgotten() {
    let node = World::new().node().await;
    node.expect("a").await;
    let archive = archives::good(2_000_000, 1);
    let (mut line, rest) = half(&node, "a", &archive).await;
    eventually("half of it is written", || node.staged().len() == 1).await;
    node.forget("a").await;
    // Known again, it is another one.
    node.expect("a").await;
    let _ = line.say(&rest).await;
    let (status, why, passing) = line.answer(true).await.refused();
    assert_eq!((status, passing), (410, false), "{why}");
    assert!(why.contains("transfer a was given up meanwhile"), "{why}");
    node.is_well().await;
}

#[tokio::test]
async fn an_upload_is_not_forgotten_while_it_runs() {
    let node = World::new().node_with(impatient(|patience| patience.memory = SHORT * 2)).await;
    let archive = archives::good(2_000_000, 1);
    let path = node.archive(&archive);
    node.expect("a").await;
    let (mut line, rest) = half(&node, "a", &archive).await;
    eventually("half of it is written", || node.staged().len() == 1).await;
    // One that was asked about later, and is forgotten.
    node.expect("b").await;
    node.agent(SENDER).upload("b", path.as_ref(), "app").await.unwrap();
    assert_eq!(node.staged().len(), 2);
    eventually("the other one is forgotten", || node.staged().len() == 1).await;
    line.say(&rest).await.unwrap();
    assert_eq!(line.answer(true).await.status, 200);
}

#[tokio::test]
async fn what_is_promised_to_one_upload_is_not_promised_to_another() {
    let world = World::new();
    let free = {
        let disk = rustix::fs::statvfs(std::env::temp_dir().as_path()).unwrap();
        disk.f_bavail * disk.f_frsize
    };
    // Others use the disk, too, but not so much that two would not fit, or three would.
    let change = |settings: &mut Settings| settings.largest = u64::MAX;
    let node = world.node_with(change).await;
    let beginning = form(&archives::good(100_000, 1));
    let mut lines = Vec::new();
    for transfer in ["a", "b", "c"] {
        node.expect(transfer).await;
        let mut line = Line::to(&node).await;
        line.say(head(transfer, SENDER, &length(free / 5 * 2))).await.unwrap();
        line.say(&beginning[..50_000]).await.unwrap();
        lines.push(line);
        if transfer < "c" {
            eventually("it is let in", || node.staged().len() == lines.len()).await;
        }
    }
    let (status, why, passing) = lines[2].answer(true).await.refused();
    assert_eq!((status, passing), (507, true), "{why}");
    assert!(why.contains("are of uploads that come in"), "{why}");
    drop(lines);
    node.is_well().await;
}

/// Four come in, 64 wait in order, and the others are told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_uploads_at_once() {
    let world = World::new();
    let change = |settings: &mut Settings| settings.patience.piece = Duration::from_mins(2);
    let node = world.node_with(change).await;
    let archive = archives::good(200_000, 1);
    let path = std::path::PathBuf::from(node.archive(&archive));
    let mut inside = Vec::new();
    for number in 0..4 {
        node.expect(&format!("in-{number}")).await;
        inside.push(half(&node, &format!("in-{number}"), &archive).await);
    }
    eventually("four are let in", || node.staged().len() == 4).await;
    for number in 0..196 {
        node.expect(&format!("t-{number}")).await;
    }
    let mut uploads = JoinSet::new();
    for number in 0..196 {
        let (sender, path) = (node.agent(SENDER), path.clone());
        uploads.spawn(async move { sender.upload(&format!("t-{number}"), &path, "app").await });
    }
    for _ in 0..196 - 64 {
        let (status, why, passing) = refused(uploads.join_next().await.unwrap().unwrap());
        assert_eq!((status, passing), (503, true), "{why}");
        assert!(why.contains("too many checkpoints come in already"), "{why}");
    }
    for (mut line, rest) in inside {
        line.say(&rest).await.unwrap();
        assert_eq!(line.answer(true).await.status, 200);
    }
    while let Some(upload) = uploads.join_next().await {
        upload.unwrap().unwrap();
    }
    assert_eq!(node.staged().len(), 68);
    for number in 0..196 {
        node.forget(&format!("t-{number}")).await;
    }
    for number in 0..4 {
        node.forget(&format!("in-{number}")).await;
    }
    node.is_well().await;
}

#[tokio::test]
async fn too_many_connections_wait_until_some_end() {
    let node = World::new().node_with(impatient(|patience| patience.headers = SHORT * 2)).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(node.running.address).await.unwrap());
    }
    soon("their places become free", node.is_well()).await;
    for socket in &mut silent {
        let heard = soon("they are hung up on", socket.read(&mut [0; 16])).await;
        assert!(matches!(heard, Ok(0) | Err(_)), "{heard:?}");
    }
}
