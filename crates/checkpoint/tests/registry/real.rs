//! Debian's docker-registry, started on loopback with a folder of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = "/usr/bin/docker-registry";
/// `name:secret`, by `htpasswd -nbB -C 5 name secret`.
const HTPASSWD: &str = "name:$2y$05$zJYxZD5qUEUla7kOnRmHFOHzI3uGUurbeml0RS1EdDwe4htZ3lLcm\n";

/// How it is to be run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Open,
    /// With a name, `name`, and a password, `secret`.
    Locked,
    /// With the certificate and key in this test's folder.
    Tls,
    /// With tokens of the server at this address, whose certificate is in this test's folder.
    Tokens(SocketAddr),
}

/// A running registry; it ends with this value.
pub struct Real {
    child: Child,
    pub folder: tempfile::TempDir,
    pub address: SocketAddr,
}

impl Real {
    /// Starts one. None if it is not installed, which counts as a failure in CI.
    pub fn start(kind: Kind, prepare: impl FnOnce(&Path)) -> Option<Self> {
        if !Path::new(BINARY).exists() {
            assert!(
                std::env::var_os("CI").is_none(),
                "{BINARY} is missing: install docker-registry"
            );
            eprintln!("skipped: {BINARY} is missing; install docker-registry");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        // The port is free now; should another take it first, the wait below says so.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let root = folder.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{ level: warn }}\nstorage:\n  filesystem: {{ rootdirectory: {root} }}\n  \
             delete: {{ enabled: true }}\nhttp:\n  addr: {address}\n"
        );
        let extra = match kind {
            Kind::Open => String::new(),
            Kind::Locked => {
                std::fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
                format!("auth:\n  htpasswd: {{ realm: r, path: {root}/htpasswd }}\n")
            }
            Kind::Tokens(server) => format!(
                "auth:\n  token: {{ realm: \"http://{server}/token\", service: r, issuer: tests, \
                 rootcertbundle: {root}/tokens.pem }}\n"
            ),
            Kind::Tls => {
                format!("  tls: {{ certificate: {root}/cert.pem, key: {root}/key.pem }}\n")
            }
        };
        config += &extra;
        std::fs::write(folder.path().join("config.yml"), config).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(BINARY)
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut real = Self { child, folder, address };
        real.wait();
        Some(real)
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        while std::net::TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(ended.is_none(), "the registry ended: {}", log());
            assert!(begun.elapsed() < Duration::from_secs(20), "no registry: {}", log());
            std::thread::yield_now();
        }
    }

    /// Where it keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let store = self.folder.path().join("docker/registry/v2/blobs/sha256");
        store.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
