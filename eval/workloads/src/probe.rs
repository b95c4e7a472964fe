//! The probe: what a client of the consumer's Service sees. Open loop: a request every interval,
//! each on a new connection, whatever became of the ones before.

mod record;
mod request;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::warn;
use url::Url;

use crate::broker::{Backoff, chain};
use crate::clock::Moment;
use crate::http;
use record::{Record, Report};
use request::Target;

/// What the probe is told.
#[derive(Clone, clap::Args)]
pub struct Settings {
    /// The ledger to ask for, e.g. `http://consumer:8080/ledger`.
    #[arg(long, env = "PROBE_URL")]
    pub url: Url,
    /// Between two requests.
    #[arg(long, env = "INTERVAL_MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub interval_ms: u64,
    /// A request without a whole answer by then has failed.
    #[arg(long, env = "TIMEOUT_MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout_ms: u64,
    /// Stop after so many seconds; else at `POST /stop` or SIGTERM.
    #[arg(long)]
    pub duration: Option<u64>,
    /// Port of the probe's own HTTP server.
    #[arg(long, env = "HTTP_PORT", default_value_t = 8080)]
    pub http_port: u16,
}

/// Why the probe could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP server does not work.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The URL is not one that the probe can ask.
    #[error("can't probe {url}: write http://host:port/path")]
    Url {
        /// The URL.
        url: Url,
    },
}

#[derive(Clone)]
struct Probe {
    record: Arc<Mutex<Record>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Probe {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> Report {
        self.lock().report(Moment::now())
    }

    /// Sends nothing new, waits for the answers under way, and reports.
    async fn stop(&self) -> Report {
        self.stop.send_replace(true);
        // The loop and each request hold a receiver; requests have their own deadline.
        self.stop.closed().await;
        self.report()
    }
}

/// Probes until its duration is over, `POST /stop` or `stop`, and prints the figures at the end.
pub async fn run(settings: Settings, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
    let target = Target::new(&settings.url).ok_or(Error::Url { url: settings.url.clone() })?;
    let listener = http::listen(settings.http_port).await?;
    let (sender, stopped) = watch::channel(false);
    let record = Record::new(settings.interval_ms, Moment::now());
    let probe = Probe { record: Arc::new(Mutex::new(record)), stop: Arc::new(sender) };
    tokio::spawn(requests(settings.clone(), target, probe.clone(), stopped));
    let over = async {
        match settings.duration {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = http::serve(listener, router(&probe)) => served?,
        _ = stop.changed() => {}
        () = over => {}
    }
    println!("{}", serde_json::json!(probe.stop().await));
    Ok(())
}

fn router(probe: &Probe) -> Router {
    let (stats, stopping, window) = (probe.clone(), probe.clone(), probe.clone());
    Router::new()
        .route("/stats", get(async move || Json(stats.report())))
        .route("/stop", post(async move || Json(stopping.stop().await)))
        .route(
            "/window",
            post(async move || {
                window.lock().reset(Moment::now());
                Json(window.report())
            }),
        )
}

/// The open loop. Ticks that the machine missed are made up for.
async fn requests(
    settings: Settings,
    target: Target,
    probe: Probe,
    mut stopped: watch::Receiver<bool>,
) {
    let resolved = tokio::select! {
        address = resolve(&target) => address,
        _ = stopped.changed() => return,
    };
    let deadline = Duration::from_millis(settings.timeout_ms);
    let mut ticks = interval(Duration::from_millis(settings.interval_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            biased;
            _ = stopped.changed() => return,
            _ = ticks.tick() => {}
        }
        let window = probe.lock().sent();
        let (probe, target, under_way) = (probe.clone(), target.clone(), stopped.clone());
        tokio::spawn(async move {
            let answer = timeout(deadline, target.ask(resolved)).await;
            let answer = answer.unwrap_or(Err(request::Error::Timeout));
            probe.lock().ended(window, answer, Moment::now());
            drop(under_way);
        });
    }
}

/// The Service's address, once: a cluster IP stays, and the probe measures the Service, not DNS.
async fn resolve(target: &Target) -> SocketAddr {
    let mut backoff = Backoff::default();
    loop {
        match lookup_host(target.authority()).await.map(|mut found| found.next()) {
            Ok(Some(address)) => return address,
            Ok(None) => warn!(host = target.authority(), "has no address yet"),
            Err(error) => warn!(host = target.authority(), error = chain(&error), "not found yet"),
        }
        backoff.wait().await;
    }
}
