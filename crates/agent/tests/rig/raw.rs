//! Requests byte for byte, as no decent client sends them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use shadow_checkpoint::agent::wire::{Refusal, SERVER_NAME};
use shadow_checkpoint::registry::digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Node;

const LIMIT: Duration = Duration::from_mins(1);

/// A connection.
pub struct Line(pub TlsStream<TcpStream>);

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Status, words, and whether another try may help.
    pub fn refused(&self) -> (u16, String, bool) {
        let refusal: Refusal = serde_json::from_slice(&self.body).unwrap();
        (self.status, refusal.error, refusal.passing)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl Line {
    /// A connection to `address`, which has a certificate of `authority`.
    pub async fn trusting(
        authority: &str,
        name: &'static str,
        address: SocketAddr,
    ) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await.map(Self)
    }

    pub async fn to(node: &Node) -> Self {
        Self::trusting(&node.authority, SERVER_NAME, node.running.address).await.unwrap()
    }

    pub async fn to_registry(node: &Node) -> Self {
        Self::trusting(&node.trusted(), "127.0.0.1", node.running.registry).await.unwrap()
    }

    pub async fn say(&mut self, words: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(words.as_ref()).await?;
        self.0.flush().await
    }

    /// The next answer. One to `HEAD` has no body.
    pub async fn answer(&mut self, has_body: bool) -> Answer {
        tokio::time::timeout(LIMIT, self.read(has_body)).await.expect("there is an answer").unwrap()
    }

    async fn read(&mut self, has_body: bool) -> io::Result<Answer> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            bytes.push(self.0.read_u8().await?);
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        if has_body {
            let length = answer.header("content-length").unwrap().parse().unwrap();
            answer.body = vec![0; length];
            self.0.read_exact(&mut answer.body).await?;
        }
        Ok(answer)
    }

    /// Waits until the other side has hung up.
    pub async fn is_hung_up(&mut self) {
        let mut rest = Vec::new();
        let hung_up = tokio::time::timeout(LIMIT, self.0.read_to_end(&mut rest)).await;
        let _ = hung_up.expect("the agent hangs up");
    }
}

/// Asks `node`'s registry.
pub async fn ask_registry(node: &Node, method: &str, path: &str) -> Answer {
    let mut line = Line::to_registry(node).await;
    line.say(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await.unwrap();
    line.answer(method != "HEAD").await
}

/// The head of an upload; `more` are header lines.
pub fn head(transfer: &str, token: &str, more: &str) -> String {
    format!(
        "POST /checkpoint?transfer={transfer} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: multipart/form-data; boundary=B\r\n{more}\r\n"
    )
}

pub fn length(length: u64) -> String {
    format!("Content-Length: {length}\r\n")
}

/// One field of a form.
pub fn field(name: &str, content: &[u8]) -> Vec<u8> {
    let head = format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
    [head.as_bytes(), content, b"\r\n"].concat()
}

pub const END: &[u8] = b"--B--\r\n";

/// A good form of `archive`.
pub fn form(archive: &[u8]) -> Vec<u8> {
    let digest = digest(archive);
    let fields = [("containerName", "app".as_bytes()), ("checkpoint", archive)];
    let fields: Vec<u8> = fields.iter().flat_map(|(name, content)| field(name, content)).collect();
    [&fields, field("digest", digest.as_bytes()).as_slice(), END].concat()
}

/// Sends `body` as an upload with a true length, and gives the answer.
pub async fn upload(node: &Node, transfer: &str, token: &str, body: &[u8]) -> Answer {
    upload_with(node, transfer, token, &length(body.len() as u64), body).await
}

/// The same with other headers.
pub async fn upload_with(
    node: &Node,
    transfer: &str,
    token: &str,
    more: &str,
    body: &[u8],
) -> Answer {
    let mut line = Line::to(node).await;
    line.say(head(transfer, token, more)).await.unwrap();
    // Who says no early need not listen to all of it.
    let _ = line.say(body).await;
    line.answer(true).await
}
