//! The registry client against an in-memory registry, which misbehaves on demand, and against
//! Debian's docker-registry: the same suite for both.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "registry/archive.rs"]
mod archive;
#[path = "registry/double.rs"]
mod double;
#[path = "registry/proxy.rs"]
mod proxy;
#[path = "registry/real.rs"]
mod real;
#[path = "registry/tokens.rs"]
mod tokens;
#[path = "registry/uploads.rs"]
mod uploads;
#[path = "registry/with_tokens.rs"]
mod with_tokens;

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use double::{Double, Fault, Lock};
use proxy::Proxy;
use real::{Kind, Real};
use serde_json::Value;
use shadow_checkpoint::registry::{Blob, Patience, blob_of_file};
use shadow_checkpoint::{Client, Credentials, Error, ImageRef, image, push_checkpoint};

const SIZE: usize = 3 << 20;
const BASIC: &str = "Basic bmFtZTpzZWNyZXQ=";
const NAME: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";
const CRIU_NAME: &str = "org.criu.checkpoint.container.name";

/// A registry behind a proxy, and an archive to push.
struct Rig {
    proxy: Proxy,
    folder: tempfile::TempDir,
    layer: Blob,
    credentials: Option<Credentials>,
}

impl Rig {
    async fn before(registry: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("checkpoint.tar");
        archive::write(&archive, SIZE, 42);
        let layer = blob_of_file(&archive).unwrap();
        Self { proxy: Proxy::start(registry).await, folder, layer, credentials: None }
    }

    fn with(self, credentials: Option<Credentials>) -> Self {
        Self { credentials, ..self }
    }

    async fn client(&self) -> Client {
        self.client_with(self.credentials.clone()).await.unwrap()
    }

    async fn client_with(&self, credentials: Option<Credentials>) -> Result<Client, Error> {
        let patience = Patience {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            stall: Duration::from_millis(500),
        };
        let plain = credentials.is_some();
        Client::connect_with(&self.proxy.address.to_string(), credentials, plain, patience).await
    }

    fn image(&self) -> ImageRef {
        format!("{}/team/checkpoints:consumer-0", self.proxy.address).parse().unwrap()
    }

    async fn push(&self, client: &Client) -> Result<image::PushReport, image::Error> {
        let archive = self.folder.path().join("checkpoint.tar");
        push_checkpoint(client, &archive, &self.image(), "app").await
    }

    /// The failure of a push, as one line.
    async fn failure(&self, client: &Client) -> String {
        self.push(client).await.unwrap_err().to_string()
    }
}

/// What every registry must do.
async fn suite(registry: SocketAddr, credentials: Option<Credentials>) {
    let rig = Rig::before(registry).await.with(credentials);
    let client = rig.client().await;
    client.may_push("team/checkpoints").await.unwrap();
    broken_uploads_are_survived(&rig, &client).await;
    a_pushed_checkpoint_is_what_it_should_be(&rig, &client).await;
    nothing_is_sent_twice(&rig, &client).await;
    manifests_are_found_and_deleted(&rig, &client).await;
}

async fn broken_uploads_are_survived(rig: &Rig, client: &Client) {
    rig.proxy.break_off(4);
    let error = rig.failure(client).await;
    assert!(error.contains("not reachable") && error.contains("checkpoint.tar"), "{error}");
    assert!(!client.manifest_exists(&rig.image()).await.unwrap());

    rig.proxy.break_off(2);
    rig.push(client).await.unwrap();
    assert_eq!(rig.proxy.to_break(), 0);
    assert!(client.has_blob("team/checkpoints", &rig.layer.digest).await.unwrap());
}

async fn a_pushed_checkpoint_is_what_it_should_be(rig: &Rig, client: &Client) {
    let report = rig.push(client).await.unwrap();
    assert_eq!(report.bytes, rig.layer.size);
    assert_eq!(report.facts.base_image(), "r/app@sha256:11");
    assert_eq!(report.image.digest.as_deref(), Some(report.digest.as_str()));

    let index = read(client, &report.image).await;
    assert_eq!(index, read(client, &rig.image()).await, "the tag names it too");
    let entry = &index["manifests"][0];
    let manifest = read(client, &rig.image().at(entry["digest"].as_str().unwrap())).await;
    for annotations in [&index["annotations"], &entry["annotations"], &manifest["annotations"]] {
        assert_eq!((&annotations[NAME], &annotations[CRIU_NAME]), (&"app".into(), &"app".into()));
        assert_eq!(annotations["org.criu.checkpoint.rootfsImageName"], "r/app:1");
    }
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    assert_eq!(manifest["layers"][0]["digest"], rig.layer.digest, "the layer is the archive");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar");
    let config = manifest["config"]["digest"].as_str().unwrap();
    assert!(client.has_blob("team/checkpoints", config).await.unwrap());
    assert!(client.has_blob("team/checkpoints", &rig.layer.digest).await.unwrap());
}

async fn read(client: &Client, image: &ImageRef) -> Value {
    serde_json::from_slice(&client.manifest(image).await.unwrap().unwrap()).unwrap()
}

async fn nothing_is_sent_twice(rig: &Rig, client: &Client) {
    rig.proxy.sent();
    let (first, second) = (rig.push(client).await.unwrap(), rig.push(client).await.unwrap());
    assert_eq!(first, second);
    assert!(rig.proxy.sent() < 20_000);
}

async fn manifests_are_found_and_deleted(rig: &Rig, client: &Client) {
    let image = rig.push(client).await.unwrap().image;
    assert!(client.manifest_exists(&image).await.unwrap());
    assert!(client.delete_manifest(&rig.image()).await.unwrap(), "by its tag");
    assert!(!client.manifest_exists(&image).await.unwrap());
    assert!(!client.delete_manifest(&image).await.unwrap(), "it is gone already");
    assert_eq!(client.manifest(&image).await.unwrap(), None);
}

/// What every registry with credentials must do.
async fn locked_suite(registry: SocketAddr) {
    let rig = Rig::before(registry).await;
    let client = rig.client_with(Credentials::basic("name", "secret")).await.unwrap();
    rig.push(&client).await.unwrap();

    let none = rig.client_with(None).await.err().unwrap();
    assert!(matches!(none, Error::Auth { .. }) && none.to_string().contains("dockerconfigjson"));

    let bad = rig.client_with(Credentials::basic("name", "hunter2")).await.err().unwrap();
    let text = format!("{bad} {bad:?}");
    assert!(matches!(bad, Error::Auth { .. }) && text.contains("refuses them"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains("Basic"), "{text}");

    let host = rig.proxy.address.to_string();
    let clear = Client::connect(&host, Credentials::basic("name", "secret"), false).await;
    let error = clear.err().unwrap().to_string();
    assert!(error.contains("not sent in the clear"), "{error}");
}

#[tokio::test]
async fn the_double_passes_the_suite() {
    suite(Double::start(Lock::Open).await.address, None).await;
}

#[tokio::test]
async fn the_locked_double_passes_the_suite() {
    locked_suite(Double::start(Lock::Basic(BASIC)).await.address).await;
}

#[tokio::test]
async fn docker_registry_passes_the_suite() {
    let Some(registry) = Real::start(Kind::Open, |_| {}) else { return };
    suite(registry.address, None).await;
}

#[tokio::test]
async fn locked_docker_registry_passes_the_suite() {
    let Some(registry) = Real::start(Kind::Locked, |_| {}) else { return };
    locked_suite(registry.address).await;
}

#[tokio::test]
async fn docker_registry_keeps_the_archive_byte_for_byte() {
    let Some(registry) = Real::start(Kind::Open, |_| {}) else { return };
    let rig = Rig::before(registry.address).await;
    rig.push(&rig.client().await).await.unwrap();
    let kept = std::fs::read(registry.blob(&rig.layer.digest)).unwrap();
    assert_eq!(kept, std::fs::read(rig.folder.path().join("checkpoint.tar")).unwrap());
}

#[tokio::test]
async fn a_fresh_checkpoint_is_sent_without_asking_first() {
    let double = Double::start(Lock::Open).await;
    let rig = Rig::before(double.address).await;
    rig.push(&rig.client().await).await.unwrap();
    let config = double.received() - rig.layer.size;
    assert!(config < 1000, "{config} bytes besides the layer");
    assert_eq!(double.begun(), 2, "layer and config");
}

#[tokio::test]
async fn passing_failures_are_survived() {
    let double = Double::start(Lock::Open).await;
    let rig = Rig::before(double.address).await;
    let client = rig.client().await;
    double.misbehave([
        Fault::Upload(StatusCode::SERVICE_UNAVAILABLE),
        Fault::Stall,
        Fault::WrongDigest,
        Fault::Manifest(StatusCode::TOO_MANY_REQUESTS),
    ]);
    let report = rig.push(&client).await.unwrap();
    assert!(client.manifest_exists(&report.image).await.unwrap());
}

#[tokio::test]
async fn whether_one_may_push_is_found_out_without_a_trace() {
    let double = Double::start(Lock::Open).await;
    let rig = Rig::before(double.address).await;
    let client = rig.client().await;
    double.misbehave([Fault::Begin(StatusCode::SERVICE_UNAVAILABLE)]);
    client.may_push("team/checkpoints").await.unwrap();
    assert_eq!((double.begun(), double.open()), (1, 0));
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        double.misbehave([Fault::Begin(status)]);
        let error = client.may_push("team/checkpoints").await.unwrap_err();
        assert!(matches!(error, Error::Auth { .. }), "{error}");
    }
    assert_eq!(double.begun(), 1, "a refusal is not tried again");
}

#[tokio::test]
async fn lasting_failures_are_told() {
    let double = Double::start(Lock::Open).await;
    let rig = Rig::before(double.address).await;
    let client = rig.client().await;
    for (fault, times, words) in [
        (Fault::Upload(StatusCode::PAYLOAD_TOO_LARGE), 1, "raise the limit on request bodies"),
        (Fault::Upload(StatusCode::INTERNAL_SERVER_ERROR), 4, "500 Internal Server Error"),
        (Fault::Stall, 4, "no answer within"),
        (Fault::WrongDigest, 4, "where sha256:"),
        (Fault::Elsewhere("http://[".to_owned()), 1, "is it a container registry?"),
        (Fault::Bearer, 1, "wants a bearer token"),
    ] {
        double.misbehave(std::iter::repeat_n(fault.clone(), times));
        let error = rig.failure(&client).await;
        assert!(error.contains(words), "{fault:?}: {error}");
        assert!(error.contains(&rig.proxy.address.to_string()), "{fault:?}: {error}");
    }
    rig.push(&client).await.unwrap();
}

#[tokio::test]
async fn another_hosts_upload_gets_no_credentials() {
    let other = Double::start(Lock::Open).await;
    let double = Double::start(Lock::Basic(BASIC)).await;
    let rig = Rig::before(double.address).await;
    let client = rig.client_with(Credentials::basic("name", "secret")).await.unwrap();
    // The other one answers 401 to a request with credentials, and 404 to an upload it didn't begin.
    let place = format!("http://{}/v2/r/blobs/uploads/77", other.address);
    double.misbehave([Fault::Elsewhere(place)]);
    let error = rig.failure(&client).await;
    assert!(error.contains("404 Not Found"), "{error}");
}

#[tokio::test]
async fn an_unreachable_registry_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::connect(&host, None, false).await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains(&host));
}

/// The child of the next test: the certificate authority comes from its environment.
#[tokio::test]
#[ignore = "run by https_needs_a_known_certificate"]
async fn child_pushes_by_https() {
    let registry: SocketAddr = std::env::var("TEST_REGISTRY").unwrap().parse().unwrap();
    let rig = Rig::before(registry).await;
    let client = rig.client().await;
    rig.push(&client).await.unwrap();
}

#[tokio::test]
async fn https_needs_a_known_certificate() {
    let Some(registry) = Real::start(Kind::Tls, |folder| {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    }) else {
        return;
    };
    let host = registry.address.to_string();
    let error = Client::connect(&host, None, true).await.err().unwrap();
    // Not NotTls, which would lead to plain HTTP.
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");

    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_pushes_by_https", "--ignored"])
        .env("SSL_CERT_FILE", registry.folder.path().join("cert.pem"))
        .env("TEST_REGISTRY", &host)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_mins(1), child).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
