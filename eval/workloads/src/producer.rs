//! The producer: several publishers, each with its own connection, publishing at a steady rate
//! whatever the broker does (open loop), every message persistent and confirmed.

mod publisher;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use crate::broker::{self, Url};
use crate::{http, random};
use publisher::Publisher;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// What the producer is told.
#[derive(Clone, clap::Args)]
pub struct Settings {
    /// The broker, with credentials.
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    pub amqp_url: String,
    /// How many publishers, each with its own connection.
    #[arg(long, env = "PUBLISHERS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: u32,
    /// Messages per second of all publishers together.
    #[arg(long, env = "RATE", default_value_t = 60.0, value_parser = rate)]
    pub rate: f64,
    /// The exchange to declare and publish to.
    #[arg(long, env = "EXCHANGE", default_value = "app.fanout")]
    pub exchange: String,
    /// direct, fanout, topic, headers.
    #[arg(long, env = "EXCHANGE_TYPE", default_value = "fanout")]
    pub exchange_type: String,
    /// The messages' routing key.
    #[arg(long, env = "ROUTING_KEY", default_value = "")]
    pub routing_key: String,
    /// Port of the HTTP server.
    #[arg(long, env = "HTTP_PORT", default_value_t = 8080)]
    pub http_port: u16,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("write a number of messages per second above 0".into()),
    }
}

/// What one publisher, or all of them together, did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Different messages sent at least once.
    pub published: u64,
    /// Of those, taken and routed by the broker.
    pub confirmed: u64,
    /// Of those, taken by the broker but routed to no queue.
    pub returned: u64,
    /// Of those, without an answer yet.
    pub unconfirmed: u64,
    /// The highest sequence number that the broker confirmed (in the totals: of all publishers).
    pub highest_confirmed: u64,
    /// Messages sent again after a missing confirm.
    pub republished: u64,
    /// Connections lost or refused.
    pub reconnects: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        // Without `..`, so that a new field cannot be forgotten here.
        let Self {
            published,
            confirmed,
            returned,
            unconfirmed,
            highest_confirmed,
            republished,
            reconnects,
        } = other;
        self.published += published;
        self.confirmed += confirmed;
        self.returned += returned;
        self.unconfirmed += unconfirmed;
        self.highest_confirmed = self.highest_confirmed.max(*highest_confirmed);
        self.republished += republished;
        self.reconnects += reconnects;
    }
}

/// One publisher's counts, written by it and read by the server.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Counts>>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Serialize)]
struct Stats {
    rate: f64,
    /// No publisher runs any more: the figures are final.
    stopped: bool,
    totals: Counts,
    publishers: std::collections::BTreeMap<String, Counts>,
}

/// Running publishers.
#[derive(Clone)]
struct Fleet {
    rate: f64,
    publishers: Arc<Vec<(String, Shared)>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Fleet {
    fn start(settings: &Settings) -> Result<Self, Error> {
        let url: Url = settings.amqp_url.parse()?;
        let process = random::id().map_err(Error::Random)?;
        let (stop, stopped) = watch::channel(false);
        let publisher = |index| {
            let (id, counts) = (format!("{process}-{index}"), Shared::default());
            let publisher =
                Publisher::new(id.clone(), url.clone(), settings.clone(), counts.clone());
            tokio::spawn(publisher.run(index, stopped.clone()));
            (id, counts)
        };
        let publishers = Arc::new((0..settings.publishers).map(publisher).collect());
        Ok(Self { rate: settings.rate, publishers, stop: Arc::new(stop) })
    }

    fn stats(&self) -> Stats {
        let mut totals = Counts::default();
        let publishers = self.publishers.iter().map(|(id, counts)| {
            let counts = counts.lock().clone();
            totals.add(&counts);
            (id.clone(), counts)
        });
        let publishers = publishers.collect();
        Stats { rate: self.rate, stopped: self.stop.is_closed(), totals, publishers }
    }

    /// Publishes nothing new, waits for the missing confirms (with a deadline), and reports.
    async fn stop(&self) -> Stats {
        self.stop.send_replace(true);
        // Each publisher drops its receiver when its last confirm is there.
        if timeout(FLUSH_TIMEOUT, self.stop.closed()).await.is_err() {
            warn!("confirms are still missing after {} s", FLUSH_TIMEOUT.as_secs());
        }
        self.stats()
    }
}

/// Why the producer could not start.
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
}

/// Publishes until `stop` says so, then flushes and prints the final figures.
pub async fn run(settings: Settings, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
    let listener = http::listen(settings.http_port).await?;
    let fleet = Fleet::start(&settings)?;
    let (stats, stopping) = (fleet.clone(), fleet.clone());
    let router = Router::new()
        .route("/stats", get(async move || Json(stats.stats())))
        .route("/stop", post(async move || Json(stopping.stop().await)));
    tokio::select! {
        served = http::serve(listener, router) => served?,
        _ = stop.changed() => {}
    }
    println!("{}", serde_json::json!(fleet.stop().await));
    Ok(())
}
