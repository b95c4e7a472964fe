//! What agents are for: a checkpoint is ordered, sent, taken in, offered, and forgotten.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the test"
)]

#[path = "../../checkpoint/tests/registry/double.rs"]
#[allow(dead_code, reason = "it behaves here")]
mod double;
mod rig;
#[path = "../../checkpoint/tests/registry/tokens.rs"]
mod tokens;

use std::net::SocketAddr;
use std::time::Duration;

use rig::raw::{Line, ask_registry};
use rig::{
    Authority, JOB, Node, REGISTRY, SENDER, World, archives, eventually, install, origin, refused,
    write_later,
};
use serde_json::Value;
use shadow_checkpoint::agent::wire::{Arrived, ForgetOrder, PushOrder, SERVER_NAME, Sender};
use shadow_checkpoint::registry::digest;

/// Everything the runtime would read of `arrived`, which is of `archive`.
async fn is_offered(node: &Node, transfer: &str, arrived: &Arrived, archive: &[u8]) {
    assert_eq!(arrived.image, format!("{REGISTRY}/ms2m/{transfer}@{}", arrived.digest));
    assert_eq!(
        (arrived.bytes, arrived.base_image.as_str()),
        (archive.len() as u64, "r/app@sha256:11")
    );
    assert_eq!(ask_registry(node, "GET", "/v2/").await.status, 200);
    let read = async |kind: &str, wanted: &str| {
        let path = format!("/v2/ms2m/{transfer}/{kind}/{wanted}");
        let answer = ask_registry(node, "GET", &path).await;
        assert_eq!((answer.status, digest(&answer.body).as_str()), (200, wanted), "{path}");
        let head = ask_registry(node, "HEAD", &path).await;
        for header in ["content-length", "content-type", "docker-content-digest"] {
            assert!(head.header(header).is_some(), "{header} of {path}");
            assert_eq!(head.header(header), answer.header(header), "{header} of {path}");
        }
        assert_eq!(head.header("docker-content-digest"), Some(wanted));
        answer.body
    };
    let json = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
    let index = json(&read("manifests", &arrived.digest).await);
    let entry = &index["manifests"][0];
    let manifest = read("manifests", entry["digest"].as_str().unwrap()).await;
    assert_eq!(entry["size"], manifest.len());
    let manifest = json(&manifest);
    for annotations in [&index["annotations"], &manifest["annotations"]] {
        assert_eq!(annotations["org.criu.checkpoint.container.name"], "app");
    }
    let (config, layer) = (&manifest["config"], &manifest["layers"][0]);
    assert_eq!(config["size"], read("blobs", config["digest"].as_str().unwrap()).await.len());
    assert_eq!(
        (&layer["size"], &layer["digest"]),
        (&archive.len().into(), &digest(archive).into())
    );
    assert!(read("blobs", &digest(archive)).await == archive, "the layer is the archive");
    let elsewhere = format!("/v2/ms2m/other/blobs/{}", digest(archive));
    assert_eq!(ask_registry(node, "GET", &elsewhere).await.status, 404);
}

#[tokio::test]
async fn a_checkpoint_goes_from_node_to_node_and_is_offered_to_the_runtime() {
    let world = World::new();
    let (source, target) = (world.node().await, world.node().await);
    let archive = archives::good(3_000_000, 1);
    let tar_path = source.archive(&archive);
    target.expect("a").await;
    let arrived = source.send("a", &tar_path, &target).await.unwrap();
    is_offered(&target, "a", &arrived, &archive).await;
    assert_eq!((source.staged().len(), target.staged().len()), (0, 1));
    // The kubelet names its own folder, wherever that is mounted.
    let kubelets = tar_path.replace(
        &source.settings.checkpoints.display().to_string(),
        "/var/lib/kubelet/checkpoints",
    );
    target.expect("b").await;
    let again = source.send("b", &kubelets, &target).await.unwrap();
    assert_eq!(again.digest, arrived.digest);
}

#[tokio::test]
async fn an_order_given_twice_is_carried_out_once() {
    let world = World::new();
    let (source, target) = (world.node().await, world.node().await);
    let tar_path = source.archive(&archives::good(2_000_000, 2));
    target.expect("a").await;
    let send = || source.send("a", &tar_path, &target);
    let (first, second) = tokio::join!(send(), send());
    // Two runs would not take the same time.
    assert_eq!(first.unwrap(), second.unwrap());
    let load = || source.load("b", &tar_path);
    let (first, second) = tokio::join!(load(), load());
    assert_eq!(first.unwrap(), second.unwrap());
    let double = double::Double::start(double::Lock::Open).await;
    let order = PushOrder {
        transfer: "c".to_owned(),
        tar_path,
        origin: origin(),
        image_ref: format!("{}/checkpoints:c", double.address),
        docker_config: None,
    };
    let push = || source.order::<Arrived>("/registry-push", &order);
    let (first, second) = tokio::join!(push(), push());
    let first = first.unwrap();
    assert_eq!(first.image, format!("{}/checkpoints@{}", double.address, first.digest));
    assert_eq!(first, second.unwrap());
    assert_eq!((double.begun(), double.open()), (2, 0), "archive and config, once");
}

/// As when the other agent was started again.
#[tokio::test]
async fn what_was_sent_and_got_lost_is_sent_again() {
    let world = World::new();
    let (source, target) = (world.node().await, world.node().await);
    let archive = archives::good(500_000, 2);
    let tar_path = source.archive(&archive);
    for _ in 0..2 {
        target.expect("a").await;
        for _ in 0..2 {
            let arrived = source.send("a", &tar_path, &target).await.unwrap();
            is_offered(&target, "a", &arrived, &archive).await;
            assert_eq!(target.staged().len(), 1);
        }
        target.forget("a").await;
    }
    let answer = refused(source.send("a", &tar_path, &target).await);
    assert!(answer.1.contains("no checkpoint of transfer a is expected"), "{}", answer.1);
}

#[tokio::test]
async fn what_has_arrived_is_not_taken_twice() {
    let world = World::new();
    let (source, target) = (world.node().await, world.node().await);
    let path = source.archive(&archives::good(500_000, 3));
    target.expect("a").await;
    let upload = async || target.agent(SENDER).upload("a", path.as_ref(), "app").await;
    assert_eq!(upload().await.unwrap(), upload().await.unwrap());
    assert_eq!(target.staged().len(), 1);
}

#[tokio::test]
async fn a_pod_of_the_transfer_job_may_send() {
    let world = World::new();
    let node = world.node().await;
    let path = node.archive(&archives::good(500_000, 3));
    let job = |prefix: &str| Sender::Pod { namespace: "shop".into(), prefix: prefix.into() };
    node.expect_from("a", job("send-")).await;
    let another = node.agent(JOB).upload("a", path.as_ref(), "app").await;
    assert_eq!(refused(another).0, 403);
    node.expect_from("a", job("send-a-")).await;
    node.agent(JOB).upload("a", path.as_ref(), "app").await.unwrap();
}

#[tokio::test]
async fn a_local_archive_is_offered_in_place() {
    let world = World::new();
    let node = world.node().await;
    let archive = archives::good(1_000_000, 4);
    let tar_path = node.archive(&archive);
    let arrived = node.load("a", &tar_path).await.unwrap();
    assert_eq!(node.staged(), Vec::<std::path::PathBuf>::new());
    is_offered(&node, "a", &arrived, &archive).await;
    node.forget("a").await;
    assert!(std::fs::exists(&tar_path).unwrap(), "it is older than what is to be forgotten");
    let gone = format!("/v2/ms2m/a/manifests/{}", arrived.digest);
    assert_eq!(ask_registry(&node, "GET", &gone).await.status, 404);
}

#[tokio::test]
async fn what_is_over_is_removed_and_nothing_else() {
    let world = World::new();
    let (source, node) = (world.node().await, world.node().await);
    let path = source.archive(&archives::good(100_000, 5));
    for transfer in ["a", "b"] {
        node.expect(transfer).await;
        node.agent(SENDER).upload(transfer, path.as_ref(), "app").await.unwrap();
    }
    let ours = archives::good(1000, 1);
    let go = [
        node.file("checkpoint-consumer-0_shop-app-2026-11-23T08:02:00Z.tar", &ours),
        node.file("checkpoint-consumer-0_shop-app-2026-11-23T08:02:09Z.tar", b"half of"),
    ];
    // Archives of `b-c` in namespace `a` and of `c` in `a-b` have the same names; they say themselves
    // what they are of.
    let alike = archives::of("elsewhere", "consumer-0", 1000, 1);
    let stay = [
        node.file("checkpoint-consumer-0_shop-app-2026-11-23T08:02:03Z.tar", &alike),
        node.file("checkpoint-consumer-0_shop-app-2026-11-23T08:01:59Z.tar", &ours),
        node.file("checkpoint-consumer-0_shop-side-2026-11-23T08:02:00Z.tar", &ours),
        node.file("checkpoint-consumer-00_shop-app-2026-11-23T08:02:00Z.tar", &ours),
        node.file("by-hand.tar", &ours),
    ];
    let link =
        node.settings.checkpoints.join("checkpoint-consumer-0_shop-app-2026-11-23T08:03:00Z.tar");
    std::os::unix::fs::symlink(&stay[4], &link).unwrap();
    let since = "2026-11-23T08:02:00Z".parse::<jiff::Timestamp>().unwrap().as_second();
    let order = ForgetOrder { transfer: "a".to_owned(), origin: origin(), since };
    for _ in 0..2 {
        let _: Value = node.order("/forget", &order).await.unwrap();
    }
    for path in &go {
        assert!(!std::fs::exists(path).unwrap(), "{path} stays");
    }
    for path in &stay {
        assert!(std::fs::exists(path).unwrap(), "{path} is gone");
    }
    assert!(link.is_symlink());
    let [staged] = node.staged().try_into().unwrap();
    assert!(staged.file_name().unwrap().to_str().unwrap().starts_with("b-"), "{staged:?}");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_at_once() {
    let world = World::new();
    let mut node = world.node().await;
    let renewed = Authority::new();
    let (certificate, _) = renewed.issue();
    // In the middle of it, certificate and key don't fit: the old ones stay in use.
    write_later(&node.settings.tls.join("tls.crt"), &certificate, Duration::from_secs(10));
    node.is_well().await;
    install(&node.settings.tls, &renewed, Duration::from_secs(20));
    node.authority = renewed.pem();
    node.is_well().await;
    let old = Line::trusting(&world.authority.pem(), SERVER_NAME, node.running.address).await;
    assert!(old.is_err(), "the old authority is out of use");
}

#[tokio::test]
async fn the_runtime_believes_one_address_and_is_the_only_one_that_is_heard() {
    let world = World::new();
    let node = world.node().await;
    let trust = node.settings.trust.clone().unwrap();
    std::fs::create_dir(trust.join("registry.example")).unwrap();
    let before = node.trusted();
    assert_eq!(ask_registry(&node, "GET", "/v2/").await.status, 200);
    let node = world
        .node_in(node.stop(), |settings| {
            settings.registry_name = "127.0.0.2:9445".to_owned();
            settings.runtime = vec!["127.0.0.9".parse().unwrap()];
        })
        .await;
    let mut folders: Vec<_> =
        std::fs::read_dir(&trust).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    folders.sort();
    assert_eq!(folders, ["127.0.0.2:9445", "registry.example"], "what another had left is gone");
    let stranger = Line::trusting(&before, "127.0.0.1", node.running.registry).await;
    assert!(stranger.is_err(), "it comes from 127.0.0.1");
    node.is_well().await;
}

#[tokio::test]
async fn a_runtime_is_known_where_both_kinds_of_addresses_are_listened_at() {
    let world = World::new();
    let at = |settings: &mut shadow_agent::Settings| {
        settings.registry = "[::]:0".parse().unwrap();
        settings.runtime = vec!["127.0.0.1".parse().unwrap()];
    };
    let node = world.node_with(at).await;
    let from = async |address: &str| {
        let address = SocketAddr::new(address.parse().unwrap(), node.running.registry.port());
        Line::trusting(&node.trusted(), "127.0.0.1", address).await
    };
    from("127.0.0.1").await.unwrap();
    assert!(from("::1").await.is_err(), "that is another address");
}

#[tokio::test]
async fn what_an_agent_has_left_is_gone_after_a_start() {
    let world = World::new();
    let node = world.node().await;
    let path = node.archive(&archives::good(100_000, 5));
    node.expect("a").await;
    node.agent(SENDER).upload("a", path.as_ref(), "app").await.unwrap();
    let outside = node.settings.tls.join("tls.crt");
    std::os::unix::fs::symlink(&outside, node.settings.staging.join("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", node.settings.staging.join("broken")).unwrap();
    assert_eq!(node.staged().len(), 3);
    let node = world.node_in(node.stop(), |_| {}).await;
    assert!(outside.exists() && std::fs::exists(&path).unwrap());
    node.is_well().await;
}

#[tokio::test]
async fn a_transfer_that_nobody_asks_about_is_forgotten() {
    let world = World::new();
    let short = |settings: &mut shadow_agent::Settings| {
        settings.patience.memory = Duration::from_secs(2);
    };
    let node = world.node_with(short).await;
    let path = node.archive(&archives::good(100_000, 5));
    node.expect("a").await;
    node.agent(SENDER).upload("a", path.as_ref(), "app").await.unwrap();
    eventually("it is forgotten", || node.staged().is_empty()).await;
    let late = node.agent(SENDER).upload("a", path.as_ref(), "app").await;
    assert_eq!(refused(late).0, 403);
    assert!(std::fs::exists(&path).unwrap());
}

#[tokio::test]
async fn anybody_may_ask_whether_it_is_alive() {
    let world = World::new();
    let node = world.node().await;
    let mut line = Line::to(&node).await;
    line.say("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let answer = line.answer(true).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, b"ok".as_slice()));
}
