//! `/healthz` and `/readyz`: alive, and watching.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

use crate::Error;

/// Whether the operator watches the cluster.
#[derive(Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// From now on it does.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Serves on `address` in the background; nowhere when there is none.
pub async fn serve(address: Option<SocketAddr>) -> Result<Ready, Error> {
    let ready = Ready::default();
    let Some(address) = address else { return Ok(ready) };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| Error::Health { address, source })?;
    let state = ready.clone();
    let router = Router::new().route("/healthz", get(|| async { "ok" })).route(
        "/readyz",
        get(move || async move {
            if state.0.load(Ordering::Relaxed) {
                (StatusCode::OK, "ok")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not watching yet")
            }
        }),
    );
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "health endpoint ended");
        }
    });
    Ok(ready)
}
