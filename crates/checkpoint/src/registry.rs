//! A small client for the OCI distribution protocol: push blobs and manifests, ask whether they
//! are there. Blobs that exist are not sent again; a blob from a file is read once, hashed while it
//! is sent, and a failed upload is tried again from its beginning.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use crate::scheme::may_be_plain;

/// For requests that carry no blob.
const PATIENCE: Duration = Duration::from_secs(15);
/// For one blob.
const BLOB_PATIENCE: Duration = Duration::from_secs(900);
/// Attempts at one blob, and the pause before the second; it doubles.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);
/// The longest answer that is read.
const ANSWER_LIMIT: usize = 4 << 20;
/// How much of a file is read at once.
const CHUNK: usize = 1 << 20;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Name and password for a registry. Its `Debug` shows neither.
#[derive(Clone)]
pub struct Credentials(String);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

impl Credentials {
    /// The credentials for `host` in a docker config file (`.dockerconfigjson`), if it has any.
    pub fn from_docker_config(text: &str, host: &str) -> Result<Option<Self>, Error> {
        let config: serde_json::Value = serde_json::from_str(text).map_err(|_| Error::Auth {
            host: host.to_owned(),
            why: "the docker config is not JSON",
        })?;
        let auths = config["auths"].as_object();
        let entry = auths.into_iter().flatten().find(|(name, _)| {
            let name = name.trim_start_matches("https://").trim_start_matches("http://");
            name.split('/').next() == Some(host)
        });
        let Some((_, entry)) = entry else { return Ok(None) };
        if let Some(auth) = entry["auth"].as_str() {
            return Ok(Some(Self(auth.to_owned())));
        }
        match (entry["username"].as_str(), entry["password"].as_str()) {
            (Some(user), Some(password)) => {
                Ok(Some(Self(BASE64.encode(format!("{user}:{password}")))))
            }
            _ => Err(Error::Auth {
                host: host.to_owned(),
                why: "the docker config's entry has neither auth nor username and password",
            }),
        }
    }
}

/// Why a registry operation failed. No variant carries credentials.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("{attempted} at registry {host}: not reachable; check its address and the network")]
    Unreachable {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{attempted} at registry {host}: no answer within {seconds} s")]
    Timeout {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// The limit.
        seconds: u64,
    },
    /// Wrong or missing credentials.
    #[error("registry {host} refuses access: {why}")]
    Auth {
        /// The registry.
        host: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// The registry said no.
    #[error("{attempted} at registry {host}: it answered {status}: {answer}")]
    Answer {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// The status.
        status: StatusCode,
        /// The beginning of its words.
        answer: String,
    },
    /// A local file can't be read.
    #[error("read {file}")]
    File {
        /// Its path.
        file: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether another try may help.
    fn is_passing(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Timeout { .. } => true,
            Error::Answer { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Error::Auth { .. } | Error::File { .. } => false,
        }
    }
}

/// A blob in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    /// Size in bytes.
    pub size: u64,
}

/// The digest of `content`.
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// A connection to one registry.
#[derive(Clone)]
pub struct Client {
    http: Http<HttpsConnector<HttpConnector>, Body>,
    host: String,
    scheme: &'static str,
    credentials: Option<Credentials>,
}

impl Client {
    /// Finds out how `host` is spoken to and whether it lets us in. `plain_http` allows plain HTTP
    /// for any registry, and for credentials.
    pub async fn connect(
        host: &str,
        credentials: Option<Credentials>,
        plain_http: bool,
    ) -> Result<Self, Error> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|source| Error::Unreachable {
                attempted: "load the system's certificate authorities".to_owned(),
                host: host.to_owned(),
                source: source.into(),
            })?
            .https_or_http()
            .enable_http1()
            .build();
        let http = Http::builder(TokioExecutor::new()).build(connector);
        let mut client = Self { http, host: host.to_owned(), scheme: "https", credentials };
        let encrypted = client.ping().await;
        let Err(Error::Unreachable { .. }) = encrypted else {
            return encrypted.map(|()| client);
        };
        if !plain_http && !may_be_plain(host) {
            return encrypted.map(|()| client);
        }
        if client.credentials.is_some() && !plain_http {
            return Err(Error::Auth {
                host: host.to_owned(),
                why: "it does not speak TLS, and credentials are not sent in the clear; use a \
                      registry with TLS or allow --plain-http",
            });
        }
        client.scheme = "http";
        client.ping().await.map(|()| client)
    }

    /// Whether the registry answers and lets us in.
    pub async fn ping(&self) -> Result<(), Error> {
        let attempted = "ask for the API";
        let response = self.send(attempted, Method::GET, "/v2/", None, empty()).await?;
        self.expect(attempted, response, &[StatusCode::OK]).await.map(|_| ())
    }

    /// Whether `repository` has the blob.
    pub async fn has_blob(&self, repository: &str, digest: &str) -> Result<bool, Error> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        self.there(&format!("look for blob {digest} of {repository}"), &path).await
    }

    /// Whether `repository` has the manifest `reference` (a tag or digest).
    pub async fn has_manifest(&self, repository: &str, reference: &str) -> Result<bool, Error> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.there(&format!("look for manifest {reference} of {repository}"), &path).await
    }

    async fn there(&self, attempted: &str, path: &str) -> Result<bool, Error> {
        let response = self.send(attempted, Method::HEAD, path, None, empty()).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => self.expect(attempted, response, &[StatusCode::OK]).await.map(|_| true),
        }
    }

    /// Sends a small blob, unless it is there.
    pub async fn put_blob(&self, repository: &str, content: Bytes) -> Result<Blob, Error> {
        let blob = Blob { digest: digest(&content), size: content.len() as u64 };
        if self.has_blob(repository, &blob.digest).await? {
            return Ok(blob);
        }
        self.retrying(async || {
            let size = content.len() as u64;
            let location = self.upload(repository, full(content.clone()), size).await?;
            self.commit(repository, &location, &blob.digest).await
        })
        .await?;
        Ok(blob)
    }

    /// Sends a file as a blob: one read, hashed while it is sent.
    pub async fn put_file(&self, repository: &str, file: &Path) -> Result<Blob, Error> {
        self.retrying(async || {
            let failed = |source| Error::File { file: file.display().to_string(), source };
            let open = tokio::fs::File::open(file).await.map_err(failed)?;
            let size = open.metadata().await.map_err(failed)?.len();
            let hash = Arc::new(Mutex::new(Sha256::new()));
            let hashing = hash.clone();
            let stream = ReaderStream::with_capacity(open, CHUNK).map_ok(move |chunk| {
                hashing.lock().unwrap_or_else(PoisonError::into_inner).update(&chunk);
                Frame::data(chunk)
            });
            let body = StreamBody::new(stream).boxed_unsync();
            let location = self.upload(repository, body, size).await?;
            let hash = hash.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let digest = format!("sha256:{:x}", hash.finalize());
            self.commit(repository, &location, &digest).await?;
            Ok(Blob { digest, size })
        })
        .await
    }

    /// Stores a manifest or index under `reference` and gives its digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        content: Bytes,
    ) -> Result<Blob, Error> {
        let blob = Blob { digest: digest(&content), size: content.len() as u64 };
        let path = format!("/v2/{repository}/manifests/{reference}");
        let attempted = format!("store manifest {reference} of {repository}");
        self.retrying(async || {
            let body = full(content.clone());
            let response =
                self.send(&attempted, Method::PUT, &path, Some(media_type), body).await?;
            self.expect(&attempted, response, &[StatusCode::CREATED]).await
        })
        .await?;
        Ok(blob)
    }

    /// POST for an upload's place, PATCH with the content; gives the place to commit at.
    async fn upload(&self, repository: &str, body: Body, size: u64) -> Result<String, Error> {
        let attempted = format!("send a blob of {size} bytes to {repository}");
        let path = format!("/v2/{repository}/blobs/uploads/");
        let response = self.send(&attempted, Method::POST, &path, None, empty()).await?;
        let response = self.expect(&attempted, response, &[StatusCode::ACCEPTED]).await?;
        let place = self.location(&attempted, &response)?;
        let request = self
            .request(Method::PATCH, &place)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(body);
        let response = self.exchange(&attempted, request, BLOB_PATIENCE).await?;
        let accepted = [StatusCode::ACCEPTED, StatusCode::NO_CONTENT];
        let response = self.expect(&attempted, response, &accepted).await?;
        self.location(&attempted, &response)
    }

    async fn commit(&self, repository: &str, place: &str, digest: &str) -> Result<(), Error> {
        let attempted = format!("store blob {digest} in {repository}");
        let separator = if place.contains('?') { '&' } else { '?' };
        let place = format!("{place}{separator}digest={digest}");
        let response = self.send(&attempted, Method::PUT, &place, None, empty()).await?;
        self.expect(&attempted, response, &[StatusCode::CREATED]).await.map(|_| ())
    }

    async fn retrying<T>(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            match attempt().await {
                Err(error) if error.is_passing() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                done => return done,
            }
        }
        attempt().await
    }

    fn request(&self, method: Method, place: &str) -> http::request::Builder {
        let uri = if place.starts_with('/') {
            format!("{}://{}{place}", self.scheme, self.host)
        } else {
            place.to_owned()
        };
        let mut builder = Request::builder().method(method).uri(&uri);
        // An upload may be sent elsewhere; our credentials are not.
        let ours = format!("{}://{}/", self.scheme, self.host);
        if let Some(Credentials(basic)) = self.credentials.as_ref().filter(|_| uri.starts_with(&ours))
        {
            builder = builder.header(AUTHORIZATION, format!("Basic {basic}"));
        }
        builder
    }

    async fn send(
        &self,
        attempted: &str,
        method: Method,
        place: &str,
        media_type: Option<&str>,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let mut builder = self.request(method, place).header("accept", ACCEPT);
        if let Some(media_type) = media_type {
            builder = builder.header(CONTENT_TYPE, media_type);
        }
        self.exchange(attempted, builder.body(body), PATIENCE).await
    }

    async fn exchange(
        &self,
        attempted: &str,
        request: http::Result<Request<Body>>,
        patience: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unreachable {
            attempted: attempted.to_owned(),
            host: self.host.clone(),
            source,
        };
        let request = request.map_err(|error| unreachable(error.into()))?;
        match tokio::time::timeout(patience, self.http.request(request)).await {
            Ok(answer) => answer.map_err(|error| unreachable(error.into())),
            Err(_) => Err(Error::Timeout {
                attempted: attempted.to_owned(),
                host: self.host.clone(),
                seconds: patience.as_secs(),
            }),
        }
    }

    async fn expect(
        &self,
        attempted: &str,
        response: Response<Incoming>,
        good: &[StatusCode],
    ) -> Result<Response<Incoming>, Error> {
        let status = response.status();
        if good.contains(&status) {
            return Ok(response);
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let why = if self.credentials.is_some() {
                "it does not take the credentials of the docker config for what was attempted"
            } else {
                "it wants credentials; give a Secret of type kubernetes.io/dockerconfigjson"
            };
            return Err(Error::Auth { host: self.host.clone(), why });
        }
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let answer: String = String::from_utf8_lossy(&body).chars().take(300).collect();
        Err(Error::Answer {
            attempted: attempted.to_owned(),
            host: self.host.clone(),
            status,
            answer,
        })
    }

    fn location(&self, attempted: &str, response: &Response<Incoming>) -> Result<String, Error> {
        let place = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        place.map(str::to_owned).ok_or_else(|| Error::Answer {
            attempted: attempted.to_owned(),
            host: self.host.clone(),
            status: response.status(),
            answer: "it named no place for the upload".to_owned(),
        })
    }
}

const ACCEPT: &str =
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, */*";

fn empty() -> Body {
    full(Bytes::new())
}

fn full(content: Bytes) -> Body {
    Full::new(content).map_err(|never| match never {}).boxed_unsync()
}
