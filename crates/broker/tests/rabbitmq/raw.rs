//! The management API and `rabbitmqctl`, as a test needs them.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use shadow_broker::conformance::Failure;

use crate::rig::RabbitRig;

impl RabbitRig {
    /// Reads a path of the management API.
    pub async fn management(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None).await
    }

    /// Writes a path of the management API, or deletes it.
    pub async fn write(&self, path: &str, body: Option<&Value>) -> Result<(), Failure> {
        let method = if body.is_some() { Method::PUT } else { Method::DELETE };
        self.send(method, path, body).await.map(|_| ())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let base = self.target.management_url.as_deref().unwrap_or_default();
        let url = url::Url::parse(&self.target.url)?;
        let login = format!("{}:{}", url.username(), url.password().unwrap_or_default());
        let login = base64::engine::general_purpose::STANDARD.encode(login);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{base}/api/{path}"))
            .header("authorization", format!("Basic {login}"))
            .body(Full::new(Bytes::from(body)))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer =
            tokio::time::timeout(Duration::from_secs(8), client.request(request)).await??;
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? })
    }
}

/// Runs `rabbitmqctl`, given as a command with its first arguments.
pub async fn rabbitmqctl(command: &str, arguments: &[&str]) -> Result<(), Failure> {
    let mut words = command.split_whitespace();
    let program = words.next().ok_or_else(|| Failure("an empty command".to_owned()))?;
    let output = tokio::process::Command::new(program).args(words).args(arguments).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (output.stdout, output.stderr);
    Err(Failure(format!("{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err))))
}
