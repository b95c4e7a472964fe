//! One request: a TCP connection of its own, HTTP/1.0, closed by the server.

use std::net::SocketAddr;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

/// No ledger is longer; more is an error, not memory.
const MAX_ANSWER: u64 = 4 << 20;

/// Whom to ask for what.
#[derive(Clone, Debug)]
pub(super) struct Target {
    authority: String,
    request: String,
}

/// What is remembered of an answer; all of it is empty for `/healthz`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) boot_id: String,
    pub(super) hostname: String,
    pub(super) applied_total: u64,
    pub(super) window: serde_json::Value,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no whole answer in time")]
    Timeout,
    #[error("connecting failed: {0}")]
    Connect(std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(std::io::Error),
    #[error("the connection ended before the answer did")]
    Short,
    #[error("the answer was: {0}")]
    Status(String),
}

impl Target {
    pub(super) fn new(url: &Url) -> Option<Self> {
        let host = url.host_str().filter(|_| url.scheme() == "http")?;
        let authority = format!("{host}:{}", url.port_or_known_default()?);
        let path = url.path();
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        Some(Self { authority, request })
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) async fn ask(&self, address: SocketAddr) -> Result<Answer, Error> {
        let mut stream = TcpStream::connect(address).await.map_err(Error::Connect)?;
        stream.write_all(self.request.as_bytes()).await.map_err(Error::Broken)?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(Error::Broken)?;
        parse(&answer)
    }
}

/// Only a whole answer counts: a connection that dies halfway ends like one that is complete.
fn parse(answer: &[u8]) -> Result<Answer, Error> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or(Error::Short)?;
    let (head, body) = (String::from_utf8_lossy(&answer[..end]), &answer[end + 4..]);
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if status.split_whitespace().nth(1) != Some("200") {
        return Err(Error::Status(status.into()));
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, length)| length.trim().parse::<usize>().ok());
    if length.is_some_and(|length| body.len() < length) {
        return Err(Error::Short);
    }
    // `/healthz` answers without JSON, and says nothing about who answered.
    Ok(serde_json::from_slice(body).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_with_status_200_counts() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 16\r\n\r\n{\"boot_id\":\"ab\"}";
        assert_eq!(parse(whole).unwrap().boot_id, "ab");
        assert!(matches!(parse(&whole[..whole.len() - 1]), Err(Error::Short)));
        assert!(matches!(parse(b""), Err(Error::Short)));
        let unavailable = parse(b"HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert_eq!(
            unavailable.unwrap_err().to_string(),
            "the answer was: HTTP/1.1 503 Service Unavailable"
        );
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\nok\n").unwrap(), Answer::default());
    }

    #[test]
    fn only_plain_http_can_be_asked() {
        let target = |url: &str| Target::new(&url.parse().unwrap());
        assert_eq!(target("http://consumer/ledger").unwrap().authority(), "consumer:80");
        assert!(target("https://consumer/ledger").is_none());
    }
}
