//! What an agent does not do: for whom, with which archive, in which form. It says why, nothing stays,
//! and it does its work afterwards.
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

use std::sync::Arc;

use http::Method;
use rig::raw::{END, Line, field, form, head, length, upload, upload_with};
use rig::{
    EXPIRED, JOB, LARGEST, Node, OPERATOR, OTHER, SENDER, World, archives, bearer, origin, refused,
};
use serde_json::{Value, json};
use shadow_checkpoint::agent::wire::{AUDIENCE, Arrived, Expected, Origin, PushOrder};
use shadow_checkpoint::registry::digest;

/// Checks an answer: status, some words, whether another try may help.
#[track_caller]
fn says(answer: (u16, String, bool), status: u16, words: &str, passing: bool) {
    let (found, why, again) = answer;
    assert_eq!((found, again), (status, passing), "{why}");
    assert!(why.contains(words), "{why}");
}

#[tokio::test]
async fn only_the_sender_that_is_expected_is_let_in() {
    let world = World::new();
    let node = world.node().await;
    node.expect("a").await;
    node.expect_from("b", bearer(OTHER)).await;
    let form = form(&archives::good(10_000, 1));
    let nobody = {
        let head =
            head("a", "", &length(form.len() as u64)).replace("Authorization: Bearer \r\n", "");
        let mut line = Line::to(&node).await;
        line.say(head).await.unwrap();
        let _ = line.say(&form).await;
        line.answer(true).await
    };
    says(nobody.refused(), 401, "needs a bearer token for ms2m-agent", false);
    let long = "x".repeat(17 << 10);
    for (token, status, words) in [
        ("", 401, "needs a bearer token"),
        (long.as_str(), 401, "needs a bearer token"),
        ("garbage", 401, "the token is refused: nobody knows it"),
        (EXPIRED, 401, "the token is refused: it has expired"),
        (OTHER, 403, "no checkpoint of transfer a is expected from this sender"),
        (OPERATOR, 403, "no checkpoint of transfer a is expected from this sender"),
        (JOB, 403, "no checkpoint of transfer a is expected from this sender"),
    ] {
        says(upload(&node, "a", token, &form).await.refused(), status, words, false);
    }
    for transfer in ["b", "unknown"] {
        let answer = upload(&node, transfer, SENDER, &form).await;
        says(answer.refused(), 403, "is expected from this sender", false);
    }
    for transfer in ["", "..", "../a", "a%0d%0aX:%20y", "A", "%ff", "a&transfer=a"] {
        let answer = upload(&node, transfer, SENDER, &form).await;
        says(answer.refused(), 400, "?transfer=name", false);
    }
    node.is_well().await;
}

/// An API server that knows one token, and how it answers about it.
fn api_server(code: u16, answer: Value) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let answer = answer.clone();
        async move {
            assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
            let asked = request.into_body().collect_bytes().await.unwrap();
            let asked: Value = serde_json::from_slice(&asked).unwrap();
            let mut status = answer;
            assert_eq!(asked["spec"]["audiences"], json!([AUDIENCE]));
            if code == 200 && asked["spec"]["token"] == OPERATOR {
                let user = "system:serviceaccount:ms2m-system:shadow-operator";
                status = json!({ "status": { "authenticated": true, "audiences": [AUDIENCE],
                    "user": { "username": user } } });
            }
            let body = kube::client::Body::from(status.to_string().into_bytes());
            http::Response::builder().status(code).body(body)
        }
    });
    kube::Client::new(service, "default")
}

#[tokio::test]
async fn the_api_server_tells_whose_a_token_is() {
    let user = json!({ "username": "system:serviceaccount:ms2m-system:ms2m-sender" });
    let status = |status: Value| json!({ "status": status });
    let other = json!({ "authenticated": true, "audiences": ["https://kubernetes"], "user": user });
    let for_all = json!({ "authenticated": true, "user": user });
    let bad = json!({ "authenticated": false, "error": "token has been invalidated" });
    let form = form(&archives::good(10_000, 1));
    for (answer, words) in [
        (other, "it is not made for ms2m-agent"),
        (for_all, "it is not made for ms2m-agent"),
        (bad, "token has been invalidated"),
    ] {
        let reviewer = Arc::new(api_server(200, status(answer)));
        let world = World { reviewer, ..World::new() };
        let node = world.node().await;
        node.expect("a").await;
        says(upload(&node, "a", SENDER, &form).await.refused(), 401, words, false);
        assert!(node.staged().is_empty());
    }
    let broken = json!({ "kind": "Status", "status": "Failure", "reason": "x", "code": 500 });
    let world = World { reviewer: Arc::new(api_server(500, broken)), ..World::new() };
    let answer = upload(&world.node().await, "a", SENDER, &form).await;
    says(answer.refused(), 503, "the API server did not tell", true);
}

async fn order_as(node: &Node, token: &str, path: &str, order: &Value) -> (u16, String, bool) {
    let method = if path.starts_with("/transfers/") { Method::PUT } else { Method::POST };
    let limit = std::time::Duration::from_secs(30);
    refused(node.agent(token).order::<Value>(method, path, order, limit).await)
}

fn expected() -> Value {
    serde_json::to_value(Expected { origin: origin(), sender: bearer(SENDER) }).unwrap()
}

#[tokio::test]
async fn only_the_operator_gives_orders() {
    let world = World::new();
    let node = world.node().await;
    node.expect("a").await;
    let archive = node.archive(&archives::good(1000, 1));
    let paths = ["/transfers/a", "/send", "/registry-push", "/local-load", "/forget"];
    for path in paths {
        for (token, status, words) in [
            ("garbage", 401, "the token is refused"),
            (EXPIRED, 401, "the token is refused"),
            (SENDER, 403, "ms2m-sender may not give orders to an agent"),
            (JOB, 403, "may not give orders to an agent"),
        ] {
            says(order_as(&node, token, path, &expected()).await, status, words, false);
        }
        // Nothing of it is read before.
        let mut line = Line::to(&node).await;
        let method = if path.starts_with("/transfers/") { "PUT" } else { "POST" };
        let huge =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n");
        line.say(huge).await.unwrap();
        says(line.answer(true).await.refused(), 401, "needs a bearer token", false);
    }
    assert!(std::fs::exists(archive).unwrap());
    node.is_well().await;
}

#[tokio::test]
async fn an_order_that_is_not_understood_is_refused() {
    let world = World::new();
    let node = world.node().await;
    let mut more = expected();
    more["also"] = json!(1);
    for order in [more, json!({}), json!([]), json!({ "origin": origin() })] {
        let answer = order_as(&node, OPERATOR, "/transfers/a", &order).await;
        says(answer, 400, "the order is not understood", false);
    }
    for transfer in ["A", "-a", "a-", "%2e%2e", "a%2Fb", "a%0d%0aX:%20y", &"a".repeat(65)] {
        let answer =
            order_as(&node, OPERATOR, &format!("/transfers/{transfer}"), &expected()).await;
        says(answer, 400, "a transfer's name has lower-case letters", false);
    }
    let huge = json!({ "a": "x".repeat(3 << 20) });
    says(order_as(&node, OPERATOR, "/send", &huge).await, 400, "or has more than", false);
    for agent in ["http://10.0.0.1:9443", "https://10.0.0.1:9443/forget?x=", "https://10.0.0.1"] {
        let tar_path = node.archive(&archives::good(1000, 1));
        let order = json!({ "transfer": "a", "tarPath": tar_path, "origin": origin(),
            "agent": agent, "token": "secret-of-a" });
        let answer = order_as(&node, OPERATOR, "/send", &order).await;
        assert!(!answer.1.contains("secret-of-a"), "{}", answer.1);
        says(answer, 502, "write its address as https://address:port", false);
    }
    node.is_well().await;
}

#[tokio::test]
async fn only_the_containers_own_archives_are_read() {
    const NAME: &str = "checkpoint-consumer-0_shop-app-2026-11-23T08:02:00Z.tar";
    let world = World::new();
    let node = world.node().await;
    let good = archives::good(1000, 1);
    let folder = node.settings.checkpoints.display().to_string();
    std::fs::create_dir(node.settings.checkpoints.join("sub")).unwrap();
    for elsewhere in [format!("{folder}/sub/{NAME}"), format!("{folder}/../{NAME}")] {
        std::fs::write(&elsewhere, &good).unwrap();
    }
    let load = async |path: &str| refused(node.load("a", path).await);
    for path in [
        "/etc/shadow".to_owned(),
        format!("/etc/{NAME}"),
        format!("{folder}/../{NAME}"),
        format!("{folder}/sub/{NAME}"),
        format!("{folder}/sub/../../{NAME}"),
        format!("/var/lib/kubelet/checkpoints/../{NAME}"),
        NAME.to_owned(),
        format!("./{NAME}"),
        folder.clone(),
        format!("{folder}/.."),
        String::new(),
    ] {
        says(load(&path).await, 403, "archives are in /var/lib/kubelet/checkpoints", false);
    }
    for name in ["checkpoint-consumer-0_shop-side-2026-11-23T08:02:00Z.tar", "by-hand.tar"] {
        let path = node.file(name, &good);
        says(load(&path).await, 403, "the archive is of another container", false);
    }
    let path = format!("{folder}/{NAME}");
    says(load(&path).await, 404, "read checkpoint archive", false);
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    says(load(&path).await, 403, "no regular file", false);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    says(load(&path).await, 403, "no regular file", false);
    std::fs::remove_dir(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    says(load(&path).await, 403, "no regular file", false);
    std::fs::remove_file(&path).unwrap();
    node.is_well().await;
}

#[tokio::test]
async fn an_archive_of_another_pod_goes_nowhere() {
    let world = World::new();
    let (source, target) = (world.node().await, world.node().await);
    let double = double::Double::start(double::Lock::Open).await;
    let words = "the archive is of another pod than shop/consumer-0";
    for (namespace, pod) in [("shop", "other-0"), ("elsewhere", "consumer-0")] {
        let tar_path = source.archive(&archives::of(namespace, pod, 1000, 1));
        says(refused(source.load("a", &tar_path).await), 422, words, false);
        target.expect("a").await;
        says(refused(source.send("a", &tar_path, &target).await), 502, words, false);
        let order = PushOrder {
            transfer: "a".to_owned(),
            tar_path,
            origin: origin(),
            image_ref: format!("{}/checkpoints:a", double.address),
            docker_config: None,
        };
        says(refused(source.order::<Arrived>("/registry-push", &order).await), 422, words, false);
        assert_eq!(double.begun(), 0);
    }
    source.is_well().await;
    target.is_well().await;
}

#[tokio::test]
async fn what_is_no_checkpoint_is_not_offered() {
    let world = World::new();
    let node = world.node().await;
    let good = archives::good(10_000, 1);
    let mut damaged = good.clone();
    damaged[3] ^= 1;
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1")];
    let huge: &[(&str, &[u8])] = &[("size", b"18446744073709551615")];
    for (archive, words) in [
        (Vec::new(), "cut short"),
        (b"no archive".repeat(100), "not a tar archive"),
        (damaged, "damaged"),
        (good[..5000].to_vec(), "cut short"),
        (archives::with("pages", tar::EntryType::GNUSparse, &[]), "sparse"),
        (archives::with("pages", tar::EntryType::Regular, sparse), "sparse"),
        (archives::with("pages", tar::EntryType::Regular, huge), "cut short"),
        (archives::with("pages", tar::EntryType::Symlink, &[]), "a link or a device"),
        (archives::with("./config.dump", tar::EntryType::Link, &[]), "a link or a device"),
        (archives::with("sda", tar::EntryType::Block, &[]), "a link or a device"),
        (archives::with("a/../../b", tar::EntryType::Regular, &[]), "name"),
        (archives::with("/etc/passwd", tar::EntryType::Regular, &[]), "name"),
        (archives::with("./spec.dump", tar::EntryType::Regular, &[]), "spec.dump"),
    ] {
        node.expect("a").await;
        let answer = upload(&node, "a", SENDER, &form(&archive)).await.refused();
        says(answer, 422, words, false);
        let tar_path = node.archive(&archive);
        says(refused(node.load("b", &tar_path).await), 422, words, false);
    }
    node.is_well().await;
}

#[tokio::test]
async fn a_form_that_is_not_as_it_should_be_is_refused() {
    let world = World::new();
    let node = world.node().await;
    node.expect("a").await;
    let archive = archives::good(200_000, 1);
    let right = digest(&archive);
    let name = field("containerName", b"app");
    let content = field("checkpoint", &archive);
    let sum = field("digest", right.as_bytes());
    let wrong = field("digest", digest(b"").as_bytes());
    let another = field("containerName", b"side");
    let long = field("containerName", &[b'a'; 2000]);
    let binary = field("containerName", &[0xff, 0xfe]);
    let order = "a form of containerName, checkpoint and digest, in this order";
    let ended = "the upload ended before its digest";
    for (parts, status, words, passing) in [
        (vec![&name, &content, &wrong], 422, "its digest is another", true),
        (vec![&another, &content, &sum], 400, "a checkpoint of container app is expected", false),
        (vec![&long, &content, &sum], 400, "containerName is too long", false),
        (vec![&binary, &content, &sum], 400, "containerName is not text", false),
        (vec![&content, &name, &sum], 400, order, false),
        (vec![&name, &sum, &content], 400, order, false),
        (vec![&name, &content, &content], 400, order, false),
        (vec![&name, &content], 400, ended, true),
        (vec![&name, &content, &long], 400, order, false),
        (vec![], 400, "the upload ended before its containerName", true),
    ] {
        let body: Vec<u8> =
            parts.into_iter().flatten().copied().chain(END.iter().copied()).collect();
        says(upload(&node, "a", SENDER, &body).await.refused(), status, words, passing);
    }
    let cut = &form(&archive)[..150_000];
    says(upload(&node, "a", SENDER, cut).await.refused(), 400, "the upload broke off", true);
    says(upload(&node, "a", SENDER, b"--B\r\n").await.refused(), 400, "broke off", true);
    // Fields, or what is before them, that never end are not kept.
    for beginning in ["--B\r\nContent-Disposition: form-data; name=\"", "no boundary"] {
        let body = [beginning.as_bytes(), &vec![b'x'; 4 << 20]].concat();
        says(upload(&node, "a", SENDER, &body).await.refused(), 400, "have no end", false);
    }
    let plain = "POST /checkpoint?transfer=a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\
                 Authorization: Bearer token-of-transfer-a\r\n\r\n";
    let mut line = Line::to(&node).await;
    line.say(plain).await.unwrap();
    says(line.answer(true).await.refused(), 400, "the upload is no form", false);
    node.is_well().await;
}

#[tokio::test]
async fn lengths_are_not_believed() {
    let world = World::new();
    let node = world.node().await;
    node.expect("a").await;
    let form = form(&archives::good(500_000, 1));
    // Before a byte is read: none is sent.
    let too_long = upload_with(&node, "a", SENDER, &length(10 << 30), b"").await;
    says(too_long.refused(), 413, "raise --largest-archive", false);
    let endless = upload_with(&node, "a", SENDER, &length(u64::MAX / 2), b"").await;
    says(endless.refused(), 413, "raise --largest-archive", false);
    // What is no length at all is no request.
    assert_eq!(upload_with(&node, "a", SENDER, &length(u64::MAX), b"").await.status, 431);
    let chunked = "Transfer-Encoding: chunked\r\n";
    let chunks = [format!("{:x}\r\n", form.len()).as_bytes(), &form, b"\r\n0\r\n\r\n"].concat();
    let chunked = upload_with(&node, "a", SENDER, chunked, &chunks).await;
    says(chunked.refused(), 411, "has to say how long it is", false);
    let short = upload_with(&node, "a", SENDER, &length(100_000), &form).await;
    says(short.refused(), 400, "the upload broke off", true);
    // Within what the form around it may take, and yet too long.
    let large = usize::try_from(LARGEST + 1).unwrap();
    let large = rig::raw::form(&vec![0; large]);
    says(upload(&node, "a", SENDER, &large).await.refused(), 413, "has more than", false);
    node.is_well().await;
}

#[tokio::test]
async fn a_full_disk_is_said_before_a_byte_is_read() {
    let world = World::new();
    let node = world.node_with(|settings| settings.reserve = u64::MAX).await;
    node.expect("a").await;
    let answer = upload_with(&node, "a", SENDER, &length(100_000), b"").await;
    says(answer.refused(), 507, "make room on the node", false);
    assert!(node.staged().is_empty());
}

#[tokio::test]
async fn another_container_is_not_taken_for_what_is_expected() {
    let world = World::new();
    let node = world.node().await;
    let path = node.archive(&archives::good(10_000, 1));
    node.expect("a").await;
    node.agent(SENDER).upload("a", path.as_ref(), "app").await.unwrap();
    let origin = Origin { container: "side".to_owned(), ..origin() };
    let order = Expected { origin, sender: bearer(SENDER) };
    let operator = node.agent(OPERATOR);
    let limit = std::time::Duration::from_secs(30);
    let _: Value = operator.order(Method::PUT, "/transfers/a", &order, limit).await.unwrap();
    assert!(node.staged().is_empty(), "what came before is of another");
    let answer = node.agent(SENDER).upload("a", path.as_ref(), "app").await;
    says(refused(answer), 400, "a checkpoint of container side is expected", false);
    node.is_well().await;
}

/// The answer has to reach who still speaks: as a sentence, not as a broken pipe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_is_heard() {
    let world = World::new();
    let node = world.node().await;
    let large = world.node_with(|settings| settings.largest = 64 << 20).await;
    let path = node.archive(&archives::good(20 << 20, 1));
    let upload = async |node: &Node, transfer: &str, token: &str, container: &str| {
        node.agent(token).upload(transfer, path.as_ref(), container).await
    };
    for node in [&node, &large] {
        node.expect("a").await;
        node.expect("c").await;
    }
    let arrived = upload(&large, "c", SENDER, "app").await.unwrap();
    for _ in 0..50 {
        for (transfer, token, status) in
            [("b", SENDER, 403), ("a", OTHER, 403), ("a", SENDER, 413), ("a", "garbage", 401)]
        {
            assert_eq!(refused(upload(&node, transfer, token, "app").await).0, status);
        }
        // In the middle of the form, and when it is there already.
        assert_eq!(refused(upload(&large, "a", SENDER, "side").await).0, 400);
        assert_eq!(upload(&large, "c", SENDER, "app").await.unwrap(), arrived);
    }
    large.forget("c").await;
    node.is_well().await;
    large.is_well().await;
}
