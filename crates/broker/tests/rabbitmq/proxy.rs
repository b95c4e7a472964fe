//! A TCP proxy that dies on command, so that the broker sees a client's sudden end.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Passes connections on to `broker` until the token is cancelled; the port it listens on.
pub async fn start(broker: String) -> std::io::Result<(u16, CancellationToken)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let cut = CancellationToken::new();
    let dead = cut.clone();
    tokio::spawn(dead.clone().run_until_cancelled_owned(async move {
        while let Ok((client, _)) = listener.accept().await {
            let passing = pass(client, broker.clone());
            tokio::spawn(dead.clone().run_until_cancelled_owned(passing));
        }
    }));
    Ok((port, cut))
}

/// Ends with either side; dropped, it ends both.
async fn pass(mut client: TcpStream, broker: String) -> std::io::Result<()> {
    let mut server = TcpStream::connect(&broker).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}
