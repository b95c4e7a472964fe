//! Agents in this process, with certificates, tokens and archives to try them with.
#![allow(dead_code, reason = "not every test binary has use for all of it")]

pub mod archives;
pub mod raw;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Method;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use shadow_agent::identity::{Identity, Reviewer, Unknown};
use shadow_agent::{Patience, Running, Settings};
use shadow_checkpoint::agent::wire::{
    Arrived, Expected, ForgetOrder, LoadOrder, Origin, SERVER_NAME, SendOrder, Sender,
};
use shadow_checkpoint::agent::{Agent, Error};

pub const OPERATOR: &str = "token-of-the-operator";
pub const SENDER: &str = "token-of-transfer-a";
pub const OTHER: &str = "token-of-transfer-b";
pub const JOB: &str = "token-of-a-job";
pub const EXPIRED: &str = "token-of-yesterday";

/// The largest archive that an agent takes here.
pub const LARGEST: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_mins(1);

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// An agent's certificate and key.
    pub fn issue(&self) -> (String, String) {
        let mut params = CertificateParams::new([SERVER_NAME.to_owned()]).unwrap();
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        params.subject_alt_names.push(SanType::IpAddress(address));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// As the runtime calls every one of them.
pub const REGISTRY: &str = "127.0.0.1:9445";

/// Whom the tokens are of.
pub struct People(Mutex<HashMap<&'static str, Result<Identity, Unknown>>>);

impl People {
    fn new() -> Self {
        let of = |user: &str, pod: Option<&str>| {
            let user = format!("system:serviceaccount:{user}");
            Ok(Identity { user, pod: pod.map(str::to_owned) })
        };
        let refused = Err(Unknown::Refused("it has expired".to_owned()));
        Self(Mutex::new(HashMap::from([
            (OPERATOR, of("ms2m-system:shadow-operator", None)),
            (SENDER, of("ms2m-system:ms2m-sender", None)),
            (OTHER, of("ms2m-system:ms2m-sender", None)),
            (JOB, of("shop:default", Some("send-a-x7k2p"))),
            (EXPIRED, refused),
        ])))
    }
}

#[async_trait::async_trait]
impl Reviewer for People {
    async fn review(&self, token: &str) -> Result<Identity, Unknown> {
        let known = self.0.lock().unwrap().get(token).cloned();
        known.unwrap_or_else(|| Err(Unknown::Refused("nobody knows it".to_owned())))
    }
}

/// One cluster.
pub struct World {
    pub authority: Authority,
    pub reviewer: Arc<dyn Reviewer>,
}

impl World {
    pub fn new() -> Self {
        Self { authority: Authority::new(), reviewer: Arc::new(People::new()) }
    }

    pub async fn node(&self) -> Node {
        self.node_with(|_| {}).await
    }

    pub async fn node_with(&self, change: impl FnOnce(&mut Settings)) -> Node {
        self.node_in(tempfile::tempdir().unwrap(), change).await
    }

    /// An agent in a folder that another one may have used.
    pub async fn node_in(
        &self,
        folder: tempfile::TempDir,
        change: impl FnOnce(&mut Settings),
    ) -> Node {
        let at = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let mut settings = Settings {
            listen: anywhere,
            registry: anywhere,
            registry_name: REGISTRY.to_owned(),
            runtime: Vec::new(),
            tls: at("tls"),
            trust: Some(at("trust")),
            checkpoints: at("checkpoints"),
            staging: at("staging"),
            plain_staging: false,
            largest: LARGEST,
            reserve: 0,
            at_once: 4,
            waiting: 64,
            patience: Patience::default(),
        };
        change(&mut settings);
        install(&settings.tls, &self.authority, Duration::ZERO);
        let running = shadow_agent::start(settings.clone(), self.reviewer.clone()).await.unwrap();
        Node { settings, running, authority: self.authority.pem(), folder }
    }
}

/// Writes what the operator writes, as if it were `later`.
pub fn install(tls: &std::path::Path, authority: &Authority, later: Duration) {
    let (certificate, key) = authority.issue();
    for (name, text) in [("tls.key", key), ("ca.crt", authority.pem()), ("tls.crt", certificate)] {
        write_later(&tls.join(name), &text, later);
    }
}

pub fn write_later(path: &std::path::Path, text: &str, later: Duration) {
    std::fs::write(path, text).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() + later).unwrap();
}

pub fn origin() -> Origin {
    Origin {
        namespace: "shop".to_owned(),
        pod: "consumer-0".to_owned(),
        container: "app".to_owned(),
    }
}

pub fn bearer(token: &str) -> Sender {
    Sender::Token { sha256: format!("{:x}", Sha256::digest(token)) }
}

/// An agent and its folders.
pub struct Node {
    pub settings: Settings,
    pub running: Running,
    pub authority: String,
    folder: tempfile::TempDir,
}

impl Node {
    /// Ends the agent; what is left of it.
    pub fn stop(self) -> tempfile::TempDir {
        self.folder
    }

    /// Whom the runtime believes.
    pub fn trusted(&self) -> String {
        let folder = self.settings.trust.clone().unwrap().join(REGISTRY);
        std::fs::read_to_string(folder.join("ca.crt")).unwrap()
    }

    pub fn base(&self) -> String {
        format!("https://{}", self.running.address)
    }

    /// The client of `token`'s bearer.
    pub fn agent(&self, token: &str) -> Agent {
        Agent::new(&self.base(), self.authority.as_bytes(), token).unwrap()
    }

    pub async fn order<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        order: &impl Serialize,
    ) -> Result<T, Error> {
        self.agent(OPERATOR).order(Method::POST, path, order, LIMIT).await
    }

    pub async fn expect_from(&self, transfer: &str, sender: Sender) {
        let expected = Expected { origin: origin(), sender };
        let path = format!("/transfers/{transfer}");
        let operator = self.agent(OPERATOR);
        let done: Value = operator.order(Method::PUT, &path, &expected, LIMIT).await.unwrap();
        assert_eq!(done, serde_json::json!({}));
    }

    pub async fn expect(&self, transfer: &str) {
        self.expect_from(transfer, bearer(SENDER)).await;
    }

    pub async fn send(&self, transfer: &str, tar_path: &str, to: &Node) -> Result<Arrived, Error> {
        let order = SendOrder {
            transfer: transfer.to_owned(),
            tar_path: tar_path.to_owned(),
            origin: origin(),
            agent: to.base(),
            token: SENDER.to_owned(),
        };
        self.order("/send", &order).await
    }

    pub async fn load(&self, transfer: &str, tar_path: &str) -> Result<Arrived, Error> {
        let order = LoadOrder {
            transfer: transfer.to_owned(),
            tar_path: tar_path.to_owned(),
            origin: origin(),
        };
        self.order("/local-load", &order).await
    }

    pub async fn forget(&self, transfer: &str) {
        let since = i64::MAX;
        let order = ForgetOrder { transfer: transfer.to_owned(), origin: origin(), since };
        let _: Value = self.order("/forget", &order).await.unwrap();
    }

    /// Writes an archive of the usual container where the kubelet does, and gives its path.
    pub fn archive(&self, content: &[u8]) -> String {
        self.file("checkpoint-consumer-0_shop-app-2026-11-23T08:02:00Z.tar", content)
    }

    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.settings.checkpoints.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// What is in the staging folder.
    pub fn staged(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.settings.staging).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Nothing is left of an attack, and the agent does what it is for.
    pub async fn is_well(&self) {
        eventually("the staging folder is empty", || self.staged().is_empty()).await;
        self.expect("well").await;
        let archive = archives::good(100_000, 7);
        let path = self.settings.tls.join("well.tar");
        std::fs::write(&path, &archive).unwrap();
        let arrived = self.agent(SENDER).upload("well", &path, "app").await.unwrap();
        assert_eq!(arrived.bytes, archive.len() as u64);
        assert_eq!(self.staged().len(), 1);
        self.forget("well").await;
        assert!(self.staged().is_empty());
    }
}

/// Waits until it is so; there is nothing that tells.
pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Status, words, and whether another try may help.
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> (u16, String, bool) {
    match answer.unwrap_err() {
        Error::Refused { status, why, passing, .. } => (status.as_u16(), why, passing),
        other => panic!("{other}"),
    }
}
