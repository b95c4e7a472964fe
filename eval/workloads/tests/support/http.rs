//! HTTP/1.0 in a few lines, for ledgers and for the broker's management API.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Asks; gives the body of a 2xx answer.
pub async fn ask(port: u16, method: &str, path: &str, headers: &str) -> Result<String, String> {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(Duration::from_secs(40), asked).await.map_err(|_| "no answer in time")?;
    let answer = answer.map_err(|error| format!("{method} {path} on {port}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("half an answer")?;
    match head.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(body.into()),
        _ => Err(format!("{method} {path}: {head}")),
    }
}

/// Asks for JSON.
pub async fn json(port: u16, method: &str, path: &str) -> Result<Value, String> {
    let body = ask(port, method, path, "").await?;
    serde_json::from_str(&body).map_err(|error| error.to_string())
}
