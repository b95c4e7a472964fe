//! A node agent, as operator, transfer Job and other agents speak to it.

mod upload;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const CONNECT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const LARGEST_ANSWER: usize = 64 << 10;

/// Why an agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to speak to it.
    #[error("{attempted}: agent {agent} can't be used: {why}")]
    Unusable {
        /// What for.
        attempted: String,
        /// Its address.
        agent: String,
        /// What is wrong.
        why: String,
    },
    /// It did not answer.
    #[error("{attempted}: agent {agent} is not reachable: {why}")]
    Unreachable {
        /// What for.
        attempted: String,
        /// Its address.
        agent: String,
        /// The cause.
        why: String,
    },
    /// It says no.
    #[error("{attempted}: agent {agent} answered {status}: {why}")]
    Refused {
        /// What was asked for.
        attempted: String,
        /// Its address.
        agent: String,
        /// The answer.
        status: StatusCode,
        /// Its words.
        why: String,
        /// Another try may help.
        passing: bool,
    },
    /// The archive can't be read.
    #[error("read checkpoint archive {archive}")]
    Archive {
        /// Its path.
        archive: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether another try may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { passing, .. } => *passing,
            Self::Unusable { .. } | Self::Archive { .. } => false,
        }
    }
}

/// An agent and the token for it. Its `Debug` does not show the token.
#[derive(Clone)]
pub struct Agent {
    http: Http<HttpsConnector<HttpConnector>, Body>,
    base: String,
    token: HeaderValue,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Agent({})", self.base)
    }
}

impl Agent {
    /// The agent at `base`, as `https://10.0.0.7:9443`. Its certificate is of one of the authorities in
    /// `authorities` (PEM) and bears [`wire::SERVER_NAME`], whatever its address.
    pub fn new(base: &str, authorities: &[u8], token: &str) -> Result<Self, Error> {
        let unusable = |why: String| Error::Unusable {
            attempted: "prepare a connection".to_owned(),
            agent: base.to_owned(),
            why,
        };
        if !is_address(base) {
            return Err(unusable("write its address as https://address:port".to_owned()));
        }
        let mut token = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
            .map_err(|_| unusable("the token has characters that no token has".to_owned()))?;
        token.set_sensitive(true);
        let tls = trusting(authorities).map_err(unusable)?;
        let name =
            ServerName::try_from(wire::SERVER_NAME).map_err(|error| unusable(error.to_string()))?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(name))
            .enable_http1()
            .wrap_connector(tcp);
        let http = Http::builder(TokioExecutor::new()).build(connector);
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), token })
    }

    /// Sends an order and gives the answer, which has to come within `limit`.
    pub async fn order<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        order: &impl Serialize,
        limit: Duration,
    ) -> Result<T, Error> {
        let attempted = format!("{method} {path}");
        let text = serde_json::to_vec(order).map_err(|error| Error::Unusable {
            attempted: attempted.clone(),
            agent: self.base.clone(),
            why: error.to_string(),
        })?;
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let request = self.request(method, path).header(CONTENT_TYPE, "application/json");
        let exchange = async {
            let answer = self.send(&attempted, request, body).await?;
            self.read(&attempted, answer).await
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late(&attempted, limit)),
        }
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        request.header(AUTHORIZATION, &self.token)
    }

    async fn send(
        &self,
        attempted: &str,
        request: http::request::Builder,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let request = request.body(body).map_err(|error| Error::Unusable {
            attempted: attempted.to_owned(),
            agent: self.base.clone(),
            why: error.to_string(),
        })?;
        self.http.request(request).await.map_err(|error| self.unreachable(attempted, &error))
    }

    async fn read<T: DeserializeOwned>(
        &self,
        attempted: &str,
        answer: Response<Incoming>,
    ) -> Result<T, Error> {
        let status = answer.status();
        let content = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
        let content = content.map_err(|error| self.unreachable(attempted, &*error))?.to_bytes();
        let refused = |why: String, passing| Error::Refused {
            attempted: attempted.to_owned(),
            agent: self.base.clone(),
            status,
            why,
            passing,
        };
        if status.is_success() {
            return serde_json::from_slice(&content)
                .map_err(|_| refused("its answer is not what an agent answers".to_owned(), false));
        }
        Err(match serde_json::from_slice::<wire::Refusal>(&content) {
            Ok(refusal) => refused(refusal.error, refusal.passing),
            Err(_) => refused("it gives no reason".to_owned(), status.is_server_error()),
        })
    }

    fn unreachable(&self, attempted: &str, error: &(dyn std::error::Error + 'static)) -> Error {
        let mut why = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            why = format!("{why}: {cause}");
            next = cause.source();
        }
        Error::Unreachable { attempted: attempted.to_owned(), agent: self.base.clone(), why }
    }

    fn late(&self, attempted: &str, limit: Duration) -> Error {
        Error::Unreachable {
            attempted: attempted.to_owned(),
            agent: self.base.clone(),
            why: format!("no answer within {} s", limit.as_secs()),
        }
    }
}

/// Whether `base` is `https://address:port` and nothing more: a path would lead orders elsewhere.
fn is_address(base: &str) -> bool {
    let authority = base.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
    let authority = authority.and_then(|authority| authority.parse::<Authority>().ok());
    authority.is_some_and(|it| it.port_u16().is_some() && !it.as_str().contains('@'))
}

/// A client's side of TLS that trusts these authorities and nobody else.
fn trusting(authorities: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities) {
        let certificate = certificate.map_err(|error| format!("its authority: {error}"))?;
        roots.add(certificate).map_err(|error| format!("its authority: {error}"))?;
    }
    if roots.is_empty() {
        return Err("there is no certificate of its authority".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_nothing_around_it() {
        for good in ["https://10.0.0.7:9443", "https://10.0.0.7:9443/", "https://[fd00::1]:9443"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "http://10.0.0.7:9443",
            "https://10.0.0.7",
            "https://10.0.0.7:9443/forget?a=",
            "https://10.0.0.7:9443?a",
            "https://10.0.0.7:9443#a",
            "https://a@10.0.0.7:9443",
            "https://10.0.0.7:9443\r\nA: b",
            "https://",
            "",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
