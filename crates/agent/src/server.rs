//! Connections: TLS, and no patience with peers that say nothing.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::Patience;

/// Connections at a time, those included that say nothing yet.
const CONNECTIONS: usize = 256;

/// Accepts and serves for ever; only `peers`, if there are any.
pub(crate) async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    routes: Router,
    patience: Patience,
    peers: Vec<IpAddr>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((_, peer)) if !peers.is_empty() && !peers.contains(&peer.ip().to_canonical()) => {
                tracing::warn!(peer = %peer.ip(), "not the node's runtime: not heard");
            }
            Ok((socket, _)) => {
                let acceptor = TlsAcceptor::from(config.clone());
                tokio::spawn(connection(socket, acceptor, routes.clone(), patience, place));
            }
            // As when there are no more file descriptors: those in use become free.
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    routes: Router,
    patience: Patience,
    _place: OwnedSemaphorePermit,
) {
    let _ = socket.set_nodelay(true);
    let handshake = tokio::time::timeout(patience.headers, acceptor.accept(socket)).await;
    let Ok(Ok(stream)) = handshake else { return };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}
