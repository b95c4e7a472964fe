//! Requests and answers: addresses, deadlines, and what answers mean. Redirects are not followed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use url::Url;

use super::error::{remedy, said};
use super::tokens::Tokens;
use super::{Body, Credentials, Error, Patience};

/// The longest document that is read.
const LARGEST_DOCUMENT: usize = 4 << 20;
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// What a request is for: errors name it, and a token is for its repository.
pub(super) struct Errand {
    pub attempted: String,
    pub repository: String,
}

impl Errand {
    pub(super) fn new(attempted: String, repository: &str) -> Self {
        Self { attempted, repository: repository.to_owned() }
    }
}

/// How one registry is spoken to.
#[derive(Clone)]
pub(super) struct Transport {
    http: Http<HttpsConnector<HttpConnector>, Body>,
    pub host: String,
    pub scheme: &'static str,
    pub credentials: Option<Credentials>,
    pub plain_http: bool,
    pub tokens: Arc<Tokens>,
    pub patience: Patience,
}

impl Transport {
    pub(super) fn new(
        host: &str,
        credentials: Option<Credentials>,
        plain_http: bool,
        patience: Patience,
    ) -> Result<Self, Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(patience.connect));
        let tls = tls().map_err(|source| Error::Unreachable {
            attempted: "prepare TLS".to_owned(),
            host: host.to_owned(),
            source: source.into(),
        })?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = Http::builder(TokioExecutor::new()).build(connector);
        Ok(Self {
            http,
            host: host.to_owned(),
            scheme: "https",
            credentials,
            plain_http,
            tokens: Arc::default(),
            patience,
        })
    }

    /// A request with a document or nothing.
    pub(super) async fn send(
        &self,
        errand: &Errand,
        method: Method,
        path: &str,
        content: Option<(&str, Bytes)>,
    ) -> Result<Response<Incoming>, Error> {
        let place = self.place(&errand.attempted, path)?;
        self.send_within(errand, method, &place, content, self.patience.answer).await
    }

    /// A request that is answered within `limit`. If it wants a token, it is sent again with one.
    pub(super) async fn send_within(
        &self,
        errand: &Errand,
        method: Method,
        place: &Url,
        content: Option<(&str, Bytes)>,
        limit: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let attempted = &errand.attempted;
        let first = self.authorization(errand, &method, place).await?;
        let (request, body) = written(&method, place, content.clone(), first.as_ref());
        let answer = self.ask(attempted, request, body, limit).await?;
        match self.challenged(errand, &method, place, first.as_ref(), &answer).await? {
            Some(token) => {
                let (request, body) = written(&method, place, content, Some(&token));
                self.ask(attempted, request, body, limit).await
            }
            None => Ok(answer),
        }
    }

    /// Asks for the API, which concerns no repository, without a token.
    pub(super) async fn send_bare(&self, attempted: &str) -> Result<Response<Incoming>, Error> {
        let place = self.place(attempted, "/v2/")?;
        let credentials = self.credentials.as_ref().map(|Credentials(header)| header);
        let (request, body) = written(&Method::GET, &place, None, credentials);
        self.ask(attempted, request, body, self.patience.answer).await
    }

    /// One request, as it is.
    pub(super) async fn ask(
        &self,
        attempted: &str,
        request: http::request::Builder,
        body: Body,
        limit: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let answer = self.http.request(self.built(attempted, request.body(body))?);
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.map_err(|error| self.broken(attempted, error)),
            Err(_) => Err(self.late(attempted, limit)),
        }
    }

    /// A request with a long body. It may take any time, as long as the body moves.
    pub(super) async fn stream(
        &self,
        attempted: &str,
        request: http::request::Builder,
        body: Body,
        taken: &AtomicU64,
    ) -> Result<Response<Incoming>, Error> {
        let mut answer =
            std::pin::pin!(self.http.request(self.built(attempted, request.body(body))?));
        let limit = self.patience.stall;
        let mut before = 0;
        loop {
            match tokio::time::timeout(limit, &mut answer).await {
                Ok(answer) => return answer.map_err(|error| self.broken(attempted, error)),
                Err(_) if taken.load(Ordering::Relaxed) > before => {
                    before = taken.load(Ordering::Relaxed);
                }
                Err(_) => return Err(self.late(attempted, limit)),
            }
        }
    }

    /// Whether `place` is the registry itself: only there do credentials and tokens go.
    pub(super) fn is_ours(&self, place: &Url) -> bool {
        self.base().is_ok_and(|base| base.origin() == place.origin())
    }

    fn base(&self) -> Result<Url, url::ParseError> {
        Url::parse(&format!("{}://{}/", self.scheme, self.host))
    }

    /// Where `path` is. A registry may name a place elsewhere, but not one without TLS when it was
    /// itself reached by TLS: a proxy that ends TLS often leaves `http` in the names it passes on, so
    /// on the registry's own host the scheme stays ours.
    pub(super) fn place(&self, attempted: &str, path: &str) -> Result<Url, Error> {
        let base = self.base();
        let place = base.as_ref().map_err(|error| *error).and_then(|base| base.join(path));
        let (Ok(base), Ok(mut place)) = (base, place) else {
            return Err(self.nonsense(attempted, "it names a place that is not a URL"));
        };
        if self.scheme == "https" && place.scheme() == "http" {
            if place.host() != base.host() {
                return Err(self.nonsense(attempted, "it names a place elsewhere without TLS"));
            }
            let port = base.port();
            if place.set_scheme("https").and_then(|()| place.set_port(port)).is_err() {
                return Err(self.nonsense(attempted, "it names a place that is not a URL"));
            }
        }
        Ok(place)
    }

    /// Where the registry says to go on.
    pub(super) fn location(
        &self,
        attempted: &str,
        answer: &Response<Incoming>,
    ) -> Result<Url, Error> {
        let place = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let none = || self.nonsense(attempted, "it names no place for the upload");
        self.place(attempted, place.ok_or_else(none)?)
    }

    /// The answer, if it has one of the `good` statuses.
    pub(super) async fn expect(
        &self,
        attempted: &str,
        answer: Response<Incoming>,
        good: &[StatusCode],
    ) -> Result<Response<Incoming>, Error> {
        let status = answer.status();
        if good.contains(&status) {
            return Ok(answer);
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.not_let_in());
        }
        let body = self.document(attempted, answer).await.unwrap_or_default();
        Err(Error::Answer {
            attempted: attempted.to_owned(),
            host: self.host.clone(),
            status,
            said: said(&body) + remedy(status),
        })
    }

    /// The answer's body.
    pub(super) async fn document(
        &self,
        attempted: &str,
        answer: Response<Incoming>,
    ) -> Result<Bytes, Error> {
        let limit = self.patience.answer;
        let body = Limited::new(answer.into_body(), LARGEST_DOCUMENT).collect();
        match tokio::time::timeout(limit, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(source)) => Err(Error::Unreachable {
                attempted: attempted.to_owned(),
                host: self.host.clone(),
                source,
            }),
            Err(_) => Err(self.late(attempted, limit)),
        }
    }

    pub(super) fn nonsense(&self, attempted: &str, why: &'static str) -> Error {
        Error::Nonsense { attempted: attempted.to_owned(), host: self.host.clone(), why }
    }

    fn not_let_in(&self) -> Error {
        let why = if self.credentials.is_some() {
            "it refuses them; check name, password and the rights on the repository"
        } else {
            "there are none, and it wants some; give a Secret of type \
             kubernetes.io/dockerconfigjson with an entry for it"
        };
        Error::Auth { host: self.host.clone(), why }
    }

    fn built(
        &self,
        attempted: &str,
        request: http::Result<Request<Body>>,
    ) -> Result<Request<Body>, Error> {
        request.map_err(|_| self.nonsense(attempted, "the request to it can't be written"))
    }

    fn broken(&self, attempted: &str, source: hyper_util::client::legacy::Error) -> Error {
        let host = self.host.clone();
        if super::scheme::is_not_tls(&source) {
            return Error::NotTls { host, source: source.into() };
        }
        Error::Unreachable { attempted: attempted.to_owned(), host, source: source.into() }
    }

    fn late(&self, attempted: &str, limit: Duration) -> Error {
        Error::Timeout {
            attempted: attempted.to_owned(),
            host: self.host.clone(),
            seconds: limit.as_secs(),
        }
    }
}

fn written(
    method: &Method,
    place: &Url,
    content: Option<(&str, Bytes)>,
    authorization: Option<&HeaderValue>,
) -> (http::request::Builder, Body) {
    let mut request = request(method, place, authorization).header(ACCEPT, MANIFESTS);
    let body = match content {
        Some((media_type, body)) => {
            request = request.header(CONTENT_TYPE, media_type);
            body
        }
        None => Bytes::new(),
    };
    (request, super::full(body))
}

pub(super) fn request(
    method: &Method,
    place: &Url,
    authorization: Option<&HeaderValue>,
) -> http::request::Builder {
    let request = Request::builder().method(method.clone()).uri(place.as_str());
    match authorization {
        Some(header) => request.header(AUTHORIZATION, header),
        None => request,
    }
}

/// TLS with the system's certificate authorities. Without any (a registry without TLS needs none)
/// every certificate is unknown.
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        tracing::warn!("no certificate authorities found on this system");
    }
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
