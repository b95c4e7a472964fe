//! The consumer: applies messages to the [`Ledger`] and obeys the control messages of the
//! specification, with the habits that real applications have (see [`Settings`]).

mod session;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::broker::{self, Backoff, Url, chain};
use crate::clock::Moment;
use crate::ledger::{Ledger, Report};
use crate::{http, random};

/// What the consumer is told by its environment; `consumer.py` reads the same variables.
#[derive(Clone, clap::Args)]
pub struct Settings {
    /// The broker, with credentials.
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    pub amqp_url: String,
    /// The exchange to declare and bind to.
    #[arg(long, env = "EXCHANGE", default_value = "app.fanout")]
    pub exchange: String,
    /// direct, fanout, topic, headers.
    #[arg(long, env = "EXCHANGE_TYPE", default_value = "fanout")]
    pub exchange_type: String,
    /// The binding's key.
    #[arg(long, env = "ROUTING_KEY", default_value = "")]
    pub routing_key: String,
    /// The application's own queue.
    #[arg(long, env = "QUEUE", default_value = "app.events")]
    pub queue: String,
    /// classic or quorum.
    #[arg(long, env = "QUEUE_TYPE", default_value = "classic", value_parser = ["classic", "quorum"])]
    pub queue_type: String,
    /// How many unacknowledged messages the broker may have sent.
    #[arg(long, env = "PREFETCH", default_value_t = 10)]
    pub prefetch: u16,
    /// Artificial service time per message.
    #[arg(long, env = "SERVICE_MS", default_value_t = 0)]
    pub service_ms: u64,
    /// Habit: declare and bind the own queue at every connect, not only at the first.
    #[arg(long, env = "REBIND", default_value = "0", value_parser = clap::builder::FalseyValueParser::new())]
    pub rebind: bool,
    /// Habit: after a reconnect go back to the queue last told, not to the own one.
    #[arg(long, env = "REMEMBER", default_value = "0", value_parser = clap::builder::FalseyValueParser::new())]
    pub remember: bool,
    /// Memory to fill with random bytes.
    #[arg(long, env = "BALLAST_MB", default_value_t = 0)]
    pub ballast_mb: usize,
    /// Port of the HTTP server; 0 takes a free one and logs it.
    #[arg(long, env = "HTTP_PORT", default_value_t = 8080)]
    pub http_port: u16,
    /// Where this pod's name is read at every connect.
    #[arg(long, env = "HOSTNAME_FILE", default_value = "/etc/hostname")]
    pub hostname_file: std::path::PathBuf,
}

/// What the HTTP server shows, shared with the session that writes it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<State>>);

pub(crate) struct State {
    boot_id: String,
    started_at: u64,
    pod: String,
    pub(crate) ledger: Ledger,
    pub(crate) connection: ConnectionState,
    pub(crate) malformed: u64,
}

/// Where the consumer stands at the broker.
#[derive(Clone, Default, Serialize)]
pub(crate) struct ConnectionState {
    /// As read from `/etc/hostname` at the last connect.
    pub(crate) hostname: String,
    pub(crate) control_queue: String,
    /// The queue consumed now, if any.
    pub(crate) queue: Option<String>,
    /// Times connected.
    pub(crate) connections: u64,
}

/// The answer of `/ledger`.
#[derive(Serialize)]
struct Answer {
    boot_id: String,
    started_at: u64,
    pod: String,
    #[serde(flatten)]
    connection: ConnectionState,
    malformed: u64,
    #[serde(flatten)]
    ledger: Report,
}

/// Why the consumer could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker's URL is none.
    #[error(transparent)]
    Broker(#[from] broker::Error),
    /// The HTTP server does not work.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The kernel gave no random bytes.
    #[error("reading random bytes failed")]
    Random(#[source] std::io::Error),
    /// No thread for the HTTP server.
    #[error("starting the HTTP server's thread failed")]
    Thread(#[source] std::io::Error),
}

/// Consumes until `stop` says so. Lost connections are made again; only a server that can't be
/// started is an error.
pub async fn run(settings: Settings, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
    let url: Url = settings.amqp_url.parse()?;
    let shared = Shared::new().map_err(Error::Random)?;
    let ballast = random::bytes(settings.ballast_mb << 20).map_err(Error::Random)?;
    serve(settings.http_port, shared.clone())?;
    let mut habits = session::Habits::default();
    let mut backoff = Backoff::default();
    loop {
        let connections = shared.lock().connection.connections;
        let session = session::run(&url, &settings, &shared, &mut habits, &mut stop);
        match session.await {
            Ok(()) => break,
            Err(error) => warn!(error = chain(&error), "connecting again"),
        }
        if shared.disconnected() > connections {
            backoff.reset();
        }
        tokio::select! {
            () = backoff.wait() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    // The ballast is there to be part of this process' memory until its end.
    std::hint::black_box(ballast);
    Ok(())
}

/// Serves the ledger from a thread and runtime of its own: whatever the broker does, it answers.
fn serve(port: u16, shared: Shared) -> Result<(), Error> {
    let (opened, open) = std::sync::mpsc::channel();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime.inspect_err(|error| warn!(%error, "no runtime for HTTP")) else {
            return;
        };
        runtime.block_on(async {
            let listener = match http::listen(port).await {
                Ok(listener) => listener,
                // The receiver waits for exactly one of these two.
                Err(error) => return opened.send(Err(error)).unwrap_or_default(),
            };
            info!(address = ?listener.local_addr().ok(), "serving the ledger");
            opened.send(Ok(())).unwrap_or_default();
            if let Err(error) = http::serve(listener, router(shared)).await {
                warn!(error = chain(&error), "the ledger is no longer served");
            }
        });
    };
    std::thread::Builder::new().name("http".into()).spawn(serve).map_err(Error::Thread)?;
    match open.recv() {
        Ok(opened) => opened.map_err(Error::Http),
        Err(error) => Err(Error::Thread(std::io::Error::other(error))),
    }
}

fn router(shared: Shared) -> Router {
    let ledger = |shared: Shared| get(async move || Json(shared.answer()));
    let window = |shared: Shared| {
        post(async move || {
            shared.lock().ledger.reset_window(Moment::now());
            Json(shared.answer())
        })
    };
    Router::new()
        .route("/", ledger(shared.clone()))
        .route("/ledger", ledger(shared.clone()))
        .route("/window", window(shared))
}

impl Shared {
    fn new() -> std::io::Result<Self> {
        let now = Moment::now();
        let name = std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME"));
        Ok(Self(Arc::new(Mutex::new(State {
            boot_id: random::id()?,
            started_at: now.unix_ms,
            pod: name.unwrap_or_default(),
            ledger: Ledger::new(now),
            connection: ConnectionState::default(),
            malformed: 0,
        }))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock would have ended that thread, not torn the counts.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that no queue is consumed; gives the number of connections made so far.
    fn disconnected(&self) -> u64 {
        let connection = &mut self.lock().connection;
        connection.queue = None;
        connection.connections
    }

    fn answer(&self) -> Answer {
        let state = self.lock();
        Answer {
            boot_id: state.boot_id.clone(),
            started_at: state.started_at,
            pod: state.pod.clone(),
            connection: state.connection.clone(),
            malformed: state.malformed,
            ledger: state.ledger.report(),
        }
    }
}
