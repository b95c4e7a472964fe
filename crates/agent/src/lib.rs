//! The node agent `ms2m-agent`: brings checkpoints to other nodes, and takes them in.
//!
//! ```text
//! source node                                  target node
//! kubelet ─► archive ─► orders.rs ══ TLS ══► receive.rs ─► staging disk ─► offered.rs ─► runtime
//!                       (send, push)          (hashed and sealed,           (a registry that only the
//!                                              see staging.rs)               node may read)
//! ```
//!
//! Nothing of an archive is kept in memory, on the sending node nothing is written, on the receiving node
//! everything is written once. Who may do what is in [`identity`].
//!
//! | on port 9443 | by | |
//! |---|---|---|
//! | `GET /healthz` | anybody | whether it is alive |
//! | `PUT /transfers/{transfer}` | the operator | a checkpoint is going to come: of what, from whom |
//! | `POST /checkpoint?transfer=` | that sender | a form of `containerName`, `checkpoint`, `digest` |
//! | `POST /send` | the operator | bring an archive to another agent |
//! | `POST /registry-push` | the operator | push an archive as an image |
//! | `POST /local-load` | the operator | offer an archive of this node to this node's runtime |
//! | `POST /forget` | the operator | a transfer is over: remove what it took in, and the archives |
//!
//! | on port 9445, from the node's addresses | by | |
//! |---|---|---|
//! | `GET /v2/` | anybody | it is a registry |
//! | `GET /v2/ms2m/{transfer}/manifests/{digest}` | who knows the digest | index or manifest |
//! | `GET /v2/ms2m/{transfer}/blobs/{digest}` | who knows the digest | config, or the archive as a layer |
//!
//! What is refused is answered with a sentence and whether another try may help
//! ([`Refusal`](shadow_checkpoint::agent::wire::Refusal)):
//!
//! | status | when |
//! |---|---|
//! | 400 | the request is not understood |
//! | 401 | the token is no good |
//! | 403 | it is not for this |
//! | 404 | there is no such archive, or nothing is offered by this digest |
//! | 408 | the peer is too slow |
//! | 410 | the transfer was forgotten meanwhile |
//! | 411, 413 | the upload does not say how long it is, or is too long |
//! | 422 | the archive is damaged, no checkpoint, or of another pod |
//! | 500 | a file of the agent's own can't be read |
//! | 502 | the other agent, or the registry, did not take it |
//! | 503 | too much goes on, or the API server does not answer |
//! | 507 | the staging disk is full |

pub mod answer;
mod asked;
pub mod form;
mod gateways;
pub mod identity;
mod listen;
mod offered;
mod orders;
mod receive;
pub mod server;
mod staging;
mod store;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use tokio::sync::Semaphore;

pub use gateways::gateways;
use identity::{Gate, Reviewer};
use store::Store;

/// How an agent is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where operator, Jobs and other agents reach it; `[::]` is IPv4, too.
    pub listen: SocketAddr,
    /// Where the node's runtime reaches it.
    pub registry: SocketAddr,
    /// The same as the runtime names it, `host:port`.
    pub registry_name: String,
    /// The node's addresses, from which the runtime comes; empty: any.
    pub runtime: Vec<IpAddr>,
    /// `tls.crt`, `tls.key` and `ca.crt`, which may be replaced at any time.
    pub tls: PathBuf,
    /// Folder in which the runtime looks for the authorities of registries; absent: none.
    pub trust: Option<PathBuf>,
    /// The kubelet's folder of archives.
    pub checkpoints: PathBuf,
    /// Where archives from other nodes are kept. It is emptied at the start.
    pub staging: PathBuf,
    /// They are kept as they are, and not sealed with a key that only this process has.
    pub plain_staging: bool,
    /// Larger archives are refused, in bytes.
    pub largest: u64,
    /// So much of the staging disk stays free, in bytes.
    pub reserve: u64,
    /// So many archives come in at a time, and so many go out; the others wait in order.
    pub at_once: usize,
    /// So many may wait; more are refused.
    pub waiting: usize,
    /// How patient it is with its peers.
    pub patience: Patience,
}

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a TLS handshake, and then for a request's headers.
    pub headers: std::time::Duration,
    /// For the next piece of an upload, and twice the time that it waits for its turn. Senders wait
    /// as long for a piece to be taken.
    pub piece: std::time::Duration,
    /// For all of it, on top of a second for every [`SLOWEST`] bytes that have come.
    pub upload: std::time::Duration,
    /// How long a transfer that nobody asks about is remembered.
    pub memory: std::time::Duration,
}

/// Bytes per second that an upload has to bring.
pub const SLOWEST: u64 = 2 << 20;

impl Default for Patience {
    fn default() -> Self {
        let seconds = std::time::Duration::from_secs;
        Self {
            headers: seconds(10),
            piece: seconds(30),
            upload: seconds(60),
            memory: seconds(3600),
        }
    }
}

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't listen.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Its certificate is no good.
    #[error("{0}")]
    Tls(String),
    /// It can't use a folder.
    #[error("use folder {folder}")]
    Folder {
        /// Which.
        folder: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// What all requests share.
pub(crate) struct Agent {
    settings: Settings,
    gate: Gate,
    store: Store,
    /// Who may come in, in order.
    incoming: Semaphore,
    /// Who may wait for that.
    queue: Semaphore,
    outgoing: Arc<Semaphore>,
    /// Bytes that come in and are not on the staging disk yet.
    promised: Arc<Mutex<u64>>,
    certificates: Arc<tls::Certificates>,
}

/// A running agent's addresses.
pub struct Running {
    /// Where operator, Jobs and other agents reach it.
    pub address: SocketAddr,
    /// Where the runtime reaches it.
    pub registry: SocketAddr,
    tasks: tokio::task::JoinSet<()>,
}

impl Running {
    /// Serves until `stop` resolves.
    pub async fn until(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => {}
            _ = self.tasks.join_next() => tracing::error!("a listener ended"),
        }
    }
}

/// Starts an agent. Tokens are asked about at `reviewer`.
#[allow(clippy::unused_async, reason = "what it starts needs the runtime of whoever awaits this")]
pub async fn start(settings: Settings, reviewer: Arc<dyn Reviewer>) -> Result<Running, Error> {
    store::empty(&settings.staging).map_err(|source| Error::Folder {
        folder: settings.staging.display().to_string(),
        source,
    })?;
    let certificates = Arc::new(tls::Certificates::load(&settings.tls).map_err(Error::Tls)?);
    let own = tls::Own::new(&settings.registry_name, settings.trust.as_deref());
    let own = Arc::new(own.map_err(Error::Tls)?);
    let for_all = tls::server(certificates.clone()).map(Arc::new).map_err(Error::Tls)?;
    let for_runtime = tls::server(own).map(Arc::new).map_err(Error::Tls)?;
    let agent = Arc::new(Agent {
        gate: Gate::new(reviewer),
        store: Store::default(),
        incoming: Semaphore::new(settings.at_once),
        queue: Semaphore::new(settings.waiting),
        outgoing: Arc::new(Semaphore::new(settings.at_once)),
        promised: Arc::default(),
        certificates,
        settings,
    });
    let listen =
        |address| listen::listen(address).map_err(|source| Error::Listen { address, source });
    let control = listen(agent.settings.listen)?;
    let registry = listen(agent.settings.registry)?;
    let addresses = (control.local_addr(), registry.local_addr());
    let unknown = |source| Error::Listen { address: agent.settings.listen, source };
    let (address, registry_address) =
        (addresses.0.map_err(unknown)?, addresses.1.map_err(unknown)?);
    let mut tasks = tokio::task::JoinSet::new();
    let (patience, runtime) = (agent.settings.patience, agent.settings.runtime.clone());
    let (orders, offers) = (control_routes(&agent), offered::routes(&agent));
    tasks.spawn(server::serve(control, for_all, orders, patience, Vec::new()));
    tasks.spawn(server::serve(registry, for_runtime, offers, patience, runtime));
    tasks.spawn(janitor(agent));
    tracing::info!(%address, registry = %registry_address, "listening");
    Ok(Running { address, registry: registry_address, tasks })
}

fn control_routes(agent: &Arc<Agent>) -> Router {
    // Bodies have limits of their own, after it is known whose they are.
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/checkpoint", post(receive::checkpoint))
        .route("/transfers/{transfer}", put(orders::expect))
        .route("/send", post(orders::send))
        .route("/registry-push", post(orders::registry_push))
        .route("/local-load", post(orders::local_load))
        .route("/forget", post(orders::forget))
        .layer(DefaultBodyLimit::disable())
        .with_state(agent.clone())
}

/// What an operator that never came back has left.
async fn janitor(agent: Arc<Agent>) {
    let memory = agent.settings.patience.memory;
    let mut ticks = tokio::time::interval((memory / 10).max(std::time::Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        for transfer in agent.store.forget_older(memory) {
            tracing::warn!(transfer, "nobody asked about this transfer any more: forgotten");
        }
        agent.certificates.refresh();
    }
}
