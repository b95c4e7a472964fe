//! Small JSON requests to pods, by address.

use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

/// `GET url` as JSON.
pub async fn get(url: &str) -> anyhow::Result<Value> {
    ask("GET", url, None).await
}

/// `POST url` as JSON; an answer without a body is null.
pub async fn post(url: &str) -> anyhow::Result<Value> {
    ask("POST", url, None).await
}

/// A request, with name and password if given.
pub async fn ask(method: &str, url: &str, login: Option<(&str, &str)>) -> anyhow::Result<Value> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url);
    if let Some((user, password)) = login {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        request = request.header("authorization", format!("Basic {basic}"));
    }
    let request = request.body(Empty::new())?;
    let what = || format!("{method} {url}");
    let work = async {
        let response = client.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, body))
    };
    let (status, body) =
        tokio::time::timeout(PATIENCE, work).await.with_context(what)?.with_context(what)?;
    if !status.is_success() {
        bail!("{} answered {status}", what());
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).with_context(what)
}
