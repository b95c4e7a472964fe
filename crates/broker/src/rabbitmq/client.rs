//! AMQP connections and channels with deadlines, and their failures as [`Error`]s.

use std::error::Error as StdError;
use std::time::Duration;

use lapin::tcp::OwnedTLSConfig;
use lapin::types::LongString;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::sync::{Mutex, MutexGuard};

use super::address::Address;
use crate::Error;

/// Limit for one operation.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Limit for a connection: TCP, TLS, AMQP's handshake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Client property that tells one session's connections from another's of the same name.
pub(super) const SESSION_PROPERTY: &str = "shadow_session";
/// Client property that tells a session's connections apart.
pub(super) const ROLE_PROPERTY: &str = "shadow_role";

/// What a connection is for; topology and publishing never share one, because an alarm stops a
/// connection that publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Holds the lock; declares, binds, deletes, counts.
    Topology,
    /// Publishes orders.
    Publisher,
    /// Moves messages from queue to queue.
    Mover,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Topology => "topology",
            Self::Publisher => "publisher",
            Self::Mover => "mover",
        }
    }
}

/// How to connect, and how to speak of the broker in errors.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) address: Address,
    /// Extra certificate authority, PEM.
    pub(super) ca: Option<String>,
    /// Name of the connections: `shadow/<migration>`.
    pub(super) name: String,
    /// Unique to this session.
    pub(super) session: String,
}

impl Wire {
    pub(super) async fn connect(&self, role: Role) -> Result<Connection, Error> {
        let properties = properties(&self.name, &self.session, role);
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.ca.clone() };
        let attempted = format!("connecting to vhost {:?}", self.address.vhost);
        let connecting = async {
            let runtime = lapin::runtime::default_runtime()?;
            let uri = self.address.uri();
            Connection::connect_uri_with_config(uri, properties, tls, runtime).await
        };
        let connected = self.within(CONNECT_DEADLINE, &attempted, connecting).await;
        connected.map_err(|error| match error {
            // No later attempt would help.
            Error::Unreachable { source, host, .. } if is_not_tls(source.as_ref()) => {
                let what = "brokerUrl".to_owned();
                let why = format!(
                    "the broker does not speak TLS at {host}; use amqp:// or the port for TLS, \
                     which is usually 5671"
                );
                Error::Invalid { what, why }
            }
            other => other,
        })
    }

    /// Runs an AMQP operation with the usual deadline.
    pub(super) async fn run<T>(
        &self,
        attempted: &str,
        operation: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        self.within(DEADLINE, attempted, operation).await
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        attempted: &str,
        operation: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(deadline, operation).await {
            Ok(result) => result.map_err(|error| self.translate(attempted, error)),
            Err(_) => Err(self.timeout(attempted, deadline)),
        }
    }

    pub(super) fn timeout(&self, attempted: &str, deadline: Duration) -> Error {
        Error::Timeout {
            attempted: attempted.to_owned(),
            host: self.address.label(),
            seconds: deadline.as_secs(),
        }
    }

    pub(super) fn failed(&self, attempted: &str, answer: impl Into<String>) -> Error {
        Error::Failed {
            attempted: attempted.to_owned(),
            host: self.address.label(),
            answer: answer.into(),
        }
    }

    fn translate(&self, attempted: &str, error: lapin::Error) -> Error {
        let (attempted, host) = (attempted.to_owned(), self.address.label());
        match error.kind() {
            ErrorKind::ProtocolError(_) if code(&error) == Some(ACCESS_REFUSED) => {
                Error::Refused { attempted, host }
            }
            // Closed on purpose through the management API: as good as a lost connection.
            ErrorKind::ProtocolError(amqp) if code(&error) != Some(CONNECTION_FORCED) => {
                Error::Failed { attempted, host, answer: amqp.get_message().to_string() }
            }
            _ => Error::Unreachable { attempted, host, source: Box::new(error) },
        }
    }
}

/// Whether `error` says that the other side answered in something else than TLS. A wrong certificate
/// is TLS.
fn is_not_tls(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidMessage(_)) = error.downcast_ref::<rustls::Error>() {
            return true;
        }
        // An I/O error's `source` skips the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as &(dyn StdError + 'static)).or(error.source());
    }
    false
}

const ACCESS_REFUSED: u16 = 403;
const CONNECTION_FORCED: u16 = 320;
/// The broker's reply when an object does not exist.
pub(super) const NOT_FOUND: u16 = 404;
/// The broker's reply when an exclusive queue belongs to another connection.
pub(super) const RESOURCE_LOCKED: u16 = 405;

/// The AMQP reply code of an error, if the broker sent one.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => Some(amqp.get_id()),
        _ => None,
    }
}

/// Auto-recovery stays off: a silent reconnect would hide the loss of the lock.
fn properties(name: &str, session: &str, role: Role) -> ConnectionProperties {
    ConnectionProperties::default()
        .with_connection_name(LongString::from(name))
        .with_client_property(SESSION_PROPERTY.into(), LongString::from(session))
        .with_client_property(ROLE_PROPERTY.into(), LongString::from(role.as_str()))
}

/// One channel, opened when needed and replaced after an error closed it (a passive declare of a
/// missing queue does). Used by one operation at a time, so that no other is hurt by such an error.
#[derive(Default)]
pub(super) struct Lane(Mutex<Option<Channel>>);

/// The right to use a lane's channel.
pub(super) struct Lease<'a> {
    wire: &'a Wire,
    slot: MutexGuard<'a, Option<Channel>>,
}

impl Lane {
    /// Waits for its turn and hands out the channel.
    pub(super) async fn lease<'a>(
        &'a self,
        wire: &'a Wire,
        connection: &Connection,
    ) -> Result<(Lease<'a>, Channel), Error> {
        let mut slot = self.0.lock().await;
        let channel = match slot.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => wire.run("opening a channel", connection.create_channel()).await?,
        };
        *slot = Some(channel.clone());
        Ok((Lease { wire, slot }, channel))
    }
}

impl Lease<'_> {
    /// Runs `operation`, which must use the leased channel; `None` if the broker answers 404.
    pub(super) async fn run_unless_missing<T>(
        mut self,
        attempted: &str,
        operation: impl Future<Output = lapin::Result<T>>,
    ) -> Result<Option<T>, Error> {
        match tokio::time::timeout(DEADLINE, operation).await {
            Ok(Ok(value)) => Ok(Some(value)),
            Ok(Err(error)) if code(&error) == Some(NOT_FOUND) => {
                *self.slot = None;
                Ok(None)
            }
            Ok(Err(error)) => {
                *self.slot = None;
                Err(self.wire.translate(attempted, error))
            }
            Err(_) => {
                // The answer may still come: nobody else must take it for its own.
                *self.slot = None;
                Err(self.wire.timeout(attempted, DEADLINE))
            }
        }
    }

    /// As [`Self::run_unless_missing`], where a missing object is an error.
    pub(super) async fn run<T>(
        self,
        attempted: &str,
        operation: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        let wire = self.wire;
        self.run_unless_missing(attempted, operation)
            .await?
            .ok_or_else(|| wire.failed(attempted, "no such queue or exchange"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn auto_recovery_is_off() {
        let properties = format!("{:?}", properties("shadow/x", "1", Role::Topology));
        assert!(properties.contains("auto_recover: false"), "{properties}");
    }

    /// What connecting with `scheme` to a port comes to, where each connection gets `answer`.
    async fn failure(scheme: &str, answer: &'static [u8]) -> (Error, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0; 1024]).await;
                let _ = socket.write_all(answer).await;
            }
        });
        let target =
            Target { url: format!("{scheme}://user:s%3Bcret@{host}"), management_url: None };
        let address = Address::parse(&target).unwrap();
        let (name, session) = ("shadow/x".to_owned(), "1".to_owned());
        let wire = Wire { address, ca: None, name, session };
        let error = wire.connect(Role::Topology).await.unwrap_err();
        assert_silent(&error);
        (error, host)
    }

    /// Neither it nor its causes show the password, in whatever form.
    fn assert_silent(error: &Error) {
        let first: &(dyn StdError + 'static) = error;
        let causes = std::iter::successors(Some(first), |error| StdError::source(*error));
        let said: Vec<String> = causes.map(|error| format!("{error} {error:?}")).collect();
        let said = said.join("\n");
        for secret in ["s;cret", "s%3Bcret", "czt", "user:"] {
            assert!(!said.contains(secret), "{secret} is in: {said}");
        }
    }

    #[tokio::test]
    async fn tls_to_a_plain_port_is_named_and_final() {
        // RabbitMQ's answer to anything but AMQP.
        let (error, host) = failure("amqps", b"AMQP\0\0\x09\x01").await;
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        let said = error.to_string();
        let words = format!("brokerUrl: the broker does not speak TLS at {host}; use amqp://");
        assert!(said.starts_with(&words), "{said}");
    }

    #[tokio::test]
    async fn a_connection_that_ends_is_worth_another_try() {
        for scheme in ["amqp", "amqps"] {
            let (error, _) = failure(scheme, b"").await;
            assert!(matches!(error, Error::Unreachable { .. }), "{scheme}: {error:?}");
        }
    }
}
