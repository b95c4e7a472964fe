//! A small client for the OCI distribution protocol: push blobs and manifests, ask for them, delete
//! manifests.

mod blobs;
mod challenge;
mod credentials;
mod error;
mod reading;
mod scheme;
mod tokens;
mod transport;
mod upload;

use std::time::Duration;

use crate::reference::ImageRef;
use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
pub use challenge::Challenge;
pub use credentials::Credentials;
pub use error::Error;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
pub use reading::blob_of_file;
pub(crate) use reading::{Part, Reading};
use sha2::{Digest as _, Sha256};
use transport::{Errand, Transport};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Attempts after the first, and the pause before the first of them; it doubles.
const RETRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);
const DIGEST: &str = "docker-content-digest";

/// How long a registry may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For an answer to a request without much content.
    pub answer: Duration,
    /// For the next piece of an upload to move, and for the answer when all of it was sent.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(15),
            stall: Duration::from_secs(30),
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

impl Blob {
    fn of(content: &[u8]) -> Self {
        Self { digest: digest(content), size: content.len() as u64 }
    }
}

/// The digest of `content`.
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(content))
}

/// A registry.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
    part: u64,
}

impl Client {
    /// Finds out how `host` is spoken to and whether it lets us in. `plain_http` allows plain HTTP for
    /// any registry, and for credentials; what is allowed without it is said in `scheme.rs`.
    pub async fn connect(
        host: &str,
        credentials: Option<Credentials>,
        plain_http: bool,
    ) -> Result<Self, Error> {
        Self::connect_with(host, credentials, plain_http, Patience::default()).await
    }

    /// The same, with other deadlines.
    pub async fn connect_with(
        host: &str,
        credentials: Option<Credentials>,
        plain_http: bool,
        patience: Patience,
    ) -> Result<Self, Error> {
        let transport = Transport::new(host, credentials, plain_http, patience)?;
        let mut client = Self { transport, part: upload::PART };
        match client.ping().await {
            Ok(()) => return Ok(client),
            Err(Error::NotTls { .. }) if plain_http || scheme::is_of_the_cluster(host) => {}
            Err(error) => return Err(error),
        }
        if client.transport.credentials.is_some() && !plain_http {
            return Err(Error::Auth {
                host: host.to_owned(),
                why: "it does not speak TLS, and credentials are not sent in the clear; use a \
                      registry with TLS or allow --plain-http",
            });
        }
        client.transport.scheme = "http";
        client.ping().await?;
        Ok(client)
    }

    /// The same client, sending files in parts of this many bytes.
    #[must_use]
    pub fn in_parts_of(self, bytes: u64) -> Self {
        Self { part: bytes.max(1), ..self }
    }

    /// Whether the registry answers and lets us in. One with tokens says that only of a repository: then
    /// it is the first request for one that is refused.
    pub async fn ping(&self) -> Result<(), Error> {
        let attempted = "ask for the API";
        let answer = self.transport.send_bare(attempted).await?;
        if self.transport.wants_a_token(&answer)? {
            return Ok(());
        }
        self.transport.expect(attempted, answer, &[StatusCode::OK]).await.map(|_| ())
    }

    /// Whether the registry has the image.
    pub async fn manifest_exists(&self, image: &ImageRef) -> Result<bool, Error> {
        Ok(self.head_manifest(image).await?.is_some())
    }

    /// The manifest or index of an image, if it is there. By digest, it has that digest.
    pub async fn manifest(&self, image: &ImageRef) -> Result<Option<Bytes>, Error> {
        let errand = Errand::new(format!("read the manifest of {image}"), &image.repository);
        let attempted = &errand.attempted;
        let path = manifest_path(&image.repository, image.reference());
        let answer = self.transport.send(&errand, Method::GET, &path, None).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = self.transport.expect(attempted, answer, &[StatusCode::OK]).await?;
        let content = self.transport.document(attempted, answer).await?;
        if let Some(expected) = &image.digest {
            self.same_digest(attempted, expected, &digest(&content))?;
        }
        Ok(Some(content))
    }

    /// Deletes the image's manifest; whether it was there. Its blobs are the registry's to collect.
    pub async fn delete_manifest(&self, image: &ImageRef) -> Result<bool, Error> {
        let errand = Errand::new(format!("delete {image}"), &image.repository);
        // Tags can't be deleted, only what they stand for.
        let digest = match &image.digest {
            Some(digest) => digest.clone(),
            None => match self.head_manifest(image).await? {
                Some(headers) => digest_in(&headers).map(str::to_owned).ok_or_else(|| {
                    self.transport.nonsense(&errand.attempted, "it does not name the tag's digest")
                })?,
                None => return Ok(false),
            },
        };
        let path = manifest_path(&image.repository, &digest);
        let answer = self.transport.send(&errand, Method::DELETE, &path, None).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        let good = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
        self.transport.expect(&errand.attempted, answer, &good).await.map(|_| true)
    }

    /// Stores a manifest or index under its tag, or if it has none under its digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        content: &Bytes,
    ) -> Result<Blob, Error> {
        let blob = Blob::of(content);
        let reference = tag.unwrap_or(&blob.digest);
        let path = manifest_path(repository, reference);
        let attempted = format!("store manifest {reference} in {repository}");
        let errand = Errand::new(attempted, repository);
        retrying(|| async {
            let content = Some((media_type, content.clone()));
            let answer = self.transport.send(&errand, Method::PUT, &path, content).await?;
            self.stored(&errand.attempted, answer, &blob.digest).await
        })
        .await?;
        Ok(blob)
    }

    async fn head(&self, errand: &Errand, path: &str) -> Result<Option<HeaderMap>, Error> {
        let answer = self.transport.send(errand, Method::HEAD, path, None).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        // Registries with a store behind them redirect to what is there.
        let good = [StatusCode::OK, StatusCode::TEMPORARY_REDIRECT, StatusCode::FOUND];
        let answer = self.transport.expect(&errand.attempted, answer, &good).await?;
        Ok(Some(answer.headers().clone()))
    }

    async fn head_manifest(&self, image: &ImageRef) -> Result<Option<HeaderMap>, Error> {
        let path = manifest_path(&image.repository, image.reference());
        let errand = Errand::new(format!("look for {image}"), &image.repository);
        self.head(&errand, &path).await
    }

    async fn stored(
        &self,
        attempted: &str,
        answer: http::Response<hyper::body::Incoming>,
        digest: &str,
    ) -> Result<(), Error> {
        let answer = self.transport.expect(attempted, answer, &[StatusCode::CREATED]).await?;
        match digest_in(answer.headers()) {
            Some(answered) => self.same_digest(attempted, digest, answered),
            None => Ok(()),
        }
    }

    fn same_digest(&self, attempted: &str, expected: &str, answered: &str) -> Result<(), Error> {
        if expected == answered {
            return Ok(());
        }
        Err(Error::WrongDigest {
            attempted: attempted.to_owned(),
            host: self.transport.host.clone(),
            expected: expected.to_owned(),
            // As long as a digest, whatever it is.
            answered: answered.chars().take(expected.len()).collect(),
        })
    }
}

async fn retrying<T, F>(attempt: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    attempt.retry(pauses()).when(Error::is_passing).notify(|error, _| warn(error)).await
}

fn pauses() -> ExponentialBuilder {
    let pauses = ExponentialBuilder::default().with_min_delay(PAUSE).with_max_times(RETRIES);
    pauses.with_jitter()
}

fn warn(error: &Error) {
    tracing::warn!(error = error as &dyn std::error::Error, "trying again");
}

fn manifest_path(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}")
}

fn digest_in(headers: &HeaderMap) -> Option<&str> {
    headers.get(DIGEST).and_then(|value| value.to_str().ok())
}

fn full(content: Bytes) -> Body {
    Full::new(content).map_err(|never| match never {}).boxed_unsync()
}
