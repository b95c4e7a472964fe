//! The small HTTP servers of the workloads.

use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

/// The server's port could not be opened, or serving ended.
#[derive(Debug, thiserror::Error)]
#[error("serving HTTP on port {port} failed")]
pub struct Error {
    port: u16,
    source: std::io::Error,
}

/// Opens `port` on every address.
pub async fn listen(port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    TcpListener::bind(address).await.map_err(|source| Error { port, source })
}

/// Serves `router`, and `/healthz`, until the process ends.
pub async fn serve(listener: TcpListener, router: Router) -> Result<(), Error> {
    let port = listener.local_addr().map_or(0, |address| address.port());
    let router = router.route("/healthz", get(|| async { "ok\n" }));
    axum::serve(listener, router).await.map_err(|source| Error { port, source })
}
