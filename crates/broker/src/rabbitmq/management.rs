//! The management API: bindings, consumers, connections, policies, figures.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::address::Address;
use super::client::{ROLE_PROPERTY, Role, SESSION_PROPERTY};
use crate::Error;

const DEADLINE: Duration = Duration::from_secs(8);
/// Largest answer that is read: a list of tens of thousands of connections.
const MAX_BODY: usize = 64 << 20;

/// A client of one broker's management API, in one vhost.
#[derive(Clone)]
pub(super) struct Management {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    address: Address,
}

/// A client connection as the management API lists it.
#[derive(Debug, serde::Deserialize)]
pub(super) struct ClientConnection {
    pub(super) name: String,
    #[serde(default)]
    pub(super) client_properties: Value,
    #[serde(default)]
    pub(super) peer_host: String,
    /// The name the client gave itself.
    #[serde(default)]
    pub(super) user_provided_name: Option<String>,
}

impl ClientConnection {
    fn property(&self, key: &str) -> Option<&str> {
        self.client_properties.get(key).and_then(Value::as_str)
    }

    /// Whether this is a connection of the session `session`.
    pub(super) fn is_of(&self, session: &str) -> bool {
        self.property(SESSION_PROPERTY) == Some(session)
    }

    /// Whether this is the connection of `session` for `role`.
    pub(super) fn is(&self, session: &str, role: Role) -> bool {
        self.is_of(session) && self.property(ROLE_PROPERTY) == Some(role.as_str())
    }

    /// The name the client chose, else the broker's.
    pub(super) fn label(&self) -> &str {
        self.property("connection_name")
            .or(self.user_provided_name.as_deref())
            .unwrap_or(&self.name)
    }
}

impl Management {
    pub(super) fn new(address: &Address, ca: Option<&str>) -> Result<Self, Error> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(ca)?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, address: address.clone() })
    }

    /// Vhost of this session.
    pub(super) fn vhost(&self) -> &str {
        &self.address.vhost
    }

    /// Reads `path` (its segments are encoded here); `None` when it does not exist.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &str,
    ) -> Result<Option<T>, Error> {
        let attempted = format!("reading {}", path.join("/"));
        let Some(body) = self.send(Method::GET, path, query, None, &attempted).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&body).map(Some).map_err(|error| {
            self.failed(&attempted, format!("its answer is not understood: {error}"))
        })
    }

    /// Reads a list; one that does not exist is empty.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Vec<T>, Error> {
        Ok(self.get(path, "").await?.unwrap_or_default())
    }

    /// Creates or replaces `path`.
    pub(super) async fn put(&self, path: &[&str], body: &Value) -> Result<(), Error> {
        let attempted = format!("writing {}", path.join("/"));
        self.send(Method::PUT, path, "", Some(body), &attempted).await.map(|_| ())
    }

    /// Deletes `path`; fine when it does not exist.
    pub(super) async fn delete(&self, path: &[&str]) -> Result<(), Error> {
        let attempted = format!("deleting {}", path.join("/"));
        self.send(Method::DELETE, path, "", None, &attempted).await.map(|_| ())
    }

    /// The client connections this user may see.
    pub(super) async fn connections(&self) -> Result<Vec<ClientConnection>, Error> {
        self.list(&["connections"]).await
    }

    /// Closes those client connections that `which` selects, and says how many.
    pub(super) async fn close_connections(
        &self,
        which: impl Fn(&ClientConnection) -> bool,
    ) -> Result<usize, Error> {
        let mut closed = 0;
        for connection in self.connections().await?.iter().filter(|c| which(c)) {
            self.delete(&["connections", &connection.name]).await?;
            closed += 1;
        }
        Ok(closed)
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &str,
        body: Option<&Value>,
        attempted: &str,
    ) -> Result<Option<Bytes>, Error> {
        let answer = self.exchange(method, path, query, body, attempted);
        let (status, body) =
            tokio::time::timeout(DEADLINE, answer).await.map_err(|_| Error::Timeout {
                attempted: attempted.to_owned(),
                host: self.host(),
                seconds: DEADLINE.as_secs(),
            })??;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::Refused { attempted: attempted.to_owned(), host: self.host() })
            }
            status if status.is_success() => Ok(Some(body)),
            status => {
                let json: Value = serde_json::from_slice(&body).unwrap_or_default();
                let reason = json.get("reason").and_then(Value::as_str).unwrap_or_default();
                Err(self.failed(attempted, format!("{status} {reason}")))
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &[&str],
        query: &str,
        body: Option<&Value>,
        attempted: &str,
    ) -> Result<(StatusCode, Bytes), Error> {
        let mut url = format!("{}/api", self.address.management);
        for segment in path {
            url.push('/');
            url.extend(utf8_percent_encode(segment, NON_ALPHANUMERIC));
        }
        if !query.is_empty() {
            url.push('?');
            url.push_str(query);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::AUTHORIZATION, self.address.authorization.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.unreachable(attempted, Box::new(error)))?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| self.unreachable(attempted, Box::new(error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| self.unreachable(attempted, error))?;
        Ok((status, body.to_bytes()))
    }

    fn unreachable(
        &self,
        attempted: &str,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> Error {
        Error::Unreachable { attempted: attempted.to_owned(), host: self.host(), source }
    }

    pub(super) fn failed(&self, attempted: &str, answer: String) -> Error {
        Error::Failed { attempted: attempted.to_owned(), host: self.host(), answer }
    }

    fn host(&self) -> String {
        self.address.management.clone()
    }
}

/// The system's certificate authorities and, if given, one more.
fn tls(ca: Option<&str>) -> Result<ClientConfig, Error> {
    let invalid =
        |why: String| Error::Invalid { what: "the extra certificate authority".to_owned(), why };
    let mut roots = RootCertStore::empty();
    // A certificate of the system that can't be parsed is no reason to trust fewer others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default().as_bytes()) {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(error.to_string()))
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
}
