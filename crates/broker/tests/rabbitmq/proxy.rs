//! A TCP proxy that dies on command, so that the broker sees an operator's sudden end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// When the proxy cuts by itself.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// Only on command.
    Never,
    /// So long after it has passed on the `n`th chunk to the broker that contains this text.
    AfterSent(&'static [u8], u64, Duration),
    /// So long after it got the `n`th chunk from the broker that contains this text; without a
    /// delay the chunk is not passed on.
    AfterReceived(&'static [u8], u64, Duration),
}

/// A running proxy.
pub struct Proxy {
    pub port: u16,
    cut: CancellationToken,
}

impl Proxy {
    pub async fn start(broker: String, cut: Cut) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let token = CancellationToken::new();
        let dead = token.clone();
        let seen = Arc::new(AtomicU64::new(0));
        tokio::spawn(async move {
            loop {
                let client = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = dead.cancelled() => return,
                };
                let server = TcpStream::connect(&broker).await.unwrap();
                tokio::spawn(pump(client, server, cut, dead.clone(), Arc::clone(&seen)));
            }
        });
        Self { port, cut: token }
    }

    /// Ends all connections at once.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

async fn pump(
    mut client: TcpStream,
    mut server: TcpStream,
    cut: Cut,
    dead: CancellationToken,
    seen: Arc<AtomicU64>,
) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            () = dead.cancelled() => return,
            read = client.read(&mut up) => {
                let Ok(n @ 1..) = read else { return };
                if server.write_all(&up[..n]).await.is_err() { return }
                if let Cut::AfterSent(text, nth, delay) = cut
                    && hit(&up[..n], text, nth, &seen)
                {
                    let dead = dead.clone();
                    tokio::spawn(async move { die(&dead, delay).await });
                }
            }
            read = server.read(&mut down) => {
                let Ok(n @ 1..) = read else { return };
                let cutting = match cut {
                    Cut::AfterReceived(text, nth, delay) => {
                        hit(&down[..n], text, nth, &seen).then_some(delay)
                    }
                    Cut::Never | Cut::AfterSent(..) => None,
                };
                if cutting == Some(Duration::ZERO) {
                    dead.cancel();
                    return;
                }
                if client.write_all(&down[..n]).await.is_err() { return }
                if let Some(delay) = cutting {
                    let dead = dead.clone();
                    tokio::spawn(async move { die(&dead, delay).await });
                }
            }
        }
    }
}

fn hit(chunk: &[u8], text: &[u8], nth: u64, seen: &AtomicU64) -> bool {
    chunk.windows(text.len()).any(|window| window == text)
        && seen.fetch_add(1, Ordering::SeqCst) + 1 == nth
}

async fn die(dead: &CancellationToken, delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    dead.cancel();
}
