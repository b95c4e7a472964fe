//! Connecting to the broker. The URL may hold a password: it is shown nowhere.

use std::str::FromStr;
use std::time::Duration;

use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HEARTBEAT_SECONDS: u16 = 30;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// Why something at the broker did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL can't be read. It is not repeated, for its password.
    #[error("the broker URL is not one: write amqp://user:password@host:5672/vhost")]
    Url,
    /// No answer while connecting.
    #[error("connecting to the broker took longer than {} s: is it reachable?", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    /// The broker, or the connection to it, refused.
    #[error("{doing} failed")]
    Refused {
        /// What was attempted, with its object.
        doing: String,
        /// What the client library says.
        #[source]
        source: lapin::Error,
    },
    /// The connection or its consumer ended without an error.
    #[error("{0} ended: the broker cancelled it or the connection is gone")]
    Ended(String),
    /// The broker refused to take a message.
    #[error("the broker refused message {seq} of publisher {publisher}")]
    Nacked {
        /// Whose message.
        publisher: String,
        /// Which one.
        seq: u64,
    },
    /// This pod's name can't be read.
    #[error("reading /etc/hostname failed")]
    Hostname(#[source] std::io::Error),
}

impl Error {
    /// True if the broker answered that the queue or exchange does not exist.
    pub fn is_not_found(&self) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        matches!(source.kind(), ErrorKind::ProtocolError(error) if error.get_id() == 404)
    }
}

/// Gives a failed operation its context.
pub trait Doing<T> {
    /// Says what was attempted, and on which object.
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for lapin::Result<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Refused { doing: doing(), source })
    }
}

/// The broker's address with credentials. Has no `Debug`.
#[derive(Clone)]
pub struct Url(AMQPUri);

impl FromStr for Url {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let mut uri = AMQPUri::from_str(url).map_err(|_| Error::Url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        Ok(Self(uri))
    }
}

/// Connects; `name` is what the broker's management page shows.
pub async fn connect(url: &Url, name: &str) -> Result<Connection, Error> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    timeout(CONNECT_TIMEOUT, Connection::connect_uri(url.0.clone(), properties))
        .await
        .map_err(|_| Error::ConnectTimeout)?
        .doing(|| "connecting to the broker".into())
}

/// Opens a channel.
pub async fn channel(connection: &Connection) -> Result<Channel, Error> {
    connection.create_channel().await.doing(|| "opening a channel".into())
}

/// Declares a durable exchange; the default exchange needs none.
pub async fn declare_exchange(channel: &Channel, name: &str, kind: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Ok(());
    }
    let kind = match kind {
        "direct" => ExchangeKind::Direct,
        "fanout" => ExchangeKind::Fanout,
        "headers" => ExchangeKind::Headers,
        "topic" => ExchangeKind::Topic,
        other => ExchangeKind::Custom(other.into()),
    };
    let options = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare(name.into(), kind, options, FieldTable::default())
        .await
        .doing(|| format!("declaring exchange {name}"))
}

/// How long to wait before the next attempt to connect: 100 ms, doubling up to 1 s.
#[derive(Debug, Default)]
pub struct Backoff(Option<Duration>);

impl Backoff {
    /// Waits, longer than the last time.
    pub async fn wait(&mut self) {
        let wait = self.0.map_or(FIRST_BACKOFF, |last| (last * 2).min(LONGEST_BACKOFF));
        self.0 = Some(wait);
        tokio::time::sleep(wait).await;
    }

    /// The connection stands: begin with the shortest wait again.
    pub fn reset(&mut self) {
        self.0 = None;
    }
}

/// An error with all its causes, for a log line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_not_repeated() {
        let error = "http://shadow:sesame@host/%2f".parse::<Url>().err().unwrap();
        assert!(!format!("{} {error:?}", chain(&error)).contains("sesame"));
    }
}
