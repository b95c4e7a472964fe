//! A TCP proxy before a registry: counts what is sent, and can break connections off.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// See the module.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    sent: Arc<AtomicU64>,
    breaks: Arc<AtomicU64>,
}

/// Content after which a connection is broken off, when that was asked for.
const BREAK_AFTER: u64 = 300_000;

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            sent: Arc::default(),
            breaks: Arc::default(),
        };
        let inner = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(inner.clone().forward(client, to));
            }
        });
        proxy
    }

    /// Breaks this many connections off, each in the middle of content.
    pub fn break_off(&self, times: u64) {
        self.breaks.store(times, Ordering::SeqCst);
    }

    /// How many connections are still to be broken off.
    pub fn to_break(&self) -> u64 {
        self.breaks.load(Ordering::SeqCst)
    }

    /// Bytes sent to the registry since the last call.
    pub fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::SeqCst)
    }

    /// The same, without beginning anew.
    pub fn peek(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    async fn forward(self, client: TcpStream, to: SocketAddr) {
        let Ok(registry) = TcpStream::connect(to).await else { return };
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_registry, mut to_registry) = registry.into_split();
        let back = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut from_registry, &mut to_client).await;
        });
        let mut buffer = vec![0; 64 << 10];
        let mut sent = 0;
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            if to_registry.write_all(&buffer[..count]).await.is_err() {
                break;
            }
            sent += count as u64;
            self.sent.fetch_add(count as u64, Ordering::SeqCst);
            let left = self.breaks.load(Ordering::SeqCst);
            if sent > BREAK_AFTER && left > 0 {
                self.breaks.store(left - 1, Ordering::SeqCst);
                back.abort();
                break;
            }
        }
    }
}
