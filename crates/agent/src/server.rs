//! Connections: TLS, and no patience with peers that say nothing, or don't listen.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::Patience;
use crate::listen::is_heard;

/// Connections at a time, those included that say nothing yet.
const CONNECTIONS: usize = 256;
/// Of a request, so much is kept before it is looked at; its headers are shorter. Every connection
/// may have as much.
const LONGEST_HEAD: usize = 64 << 10;
/// How long, and how much, is listened to a peer that was answered already: one that is cut off in
/// the middle of a sentence does not hear the answer.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 64 << 20);

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
            Ok((_, peer)) if !is_heard(&peers, peer.ip()) => {
                tracing::warn!(peer = %peer.ip(), "not the node's runtime: not heard");
            }
            Ok((socket, _)) => {
                let acceptor = TlsAcceptor::from(config.clone());
                tokio::spawn(connection(socket, acceptor, routes.clone(), patience, place));
            }
            // As when there are no more file descriptors: those in use become free.
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
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
    let socket = Listened { socket, limit: patience.piece, stalled: None };
    let handshake = tokio::time::timeout(patience.headers, acceptor.accept(socket)).await;
    let Ok(Ok(stream)) = handshake else { return };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .without_shutdown()
        .await;
    match served {
        Ok(parts) => hang_up(parts.io.into_inner()).await,
        Err(error) => tracing::debug!(%error, "a connection ended"),
    }
}

/// Says that nothing more will be said, and lets the peer finish.
async fn hang_up(mut stream: TlsStream<Listened>) {
    let farewell = async {
        let (mut heard, mut piece) = (0, vec![0; 16 << 10]);
        stream.shutdown().await?;
        // What is not looked at need not be decrypted.
        let socket = stream.get_mut().0;
        while heard < LINGER.1 {
            match socket.read(&mut piece).await? {
                0 => break,
                length => heard += length,
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER.0, farewell).await;
}

/// A socket whose peer has to take what it is given.
struct Listened {
    socket: TcpStream,
    limit: Duration,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Listened {
    fn moved<T>(&mut self, done: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = None;
            return done;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Listened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Listened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        piece: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.socket).poll_write(cx, piece);
        self.moved(done, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.socket).poll_write_vectored(cx, pieces);
        self.moved(done, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
