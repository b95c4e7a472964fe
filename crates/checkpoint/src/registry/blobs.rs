//! Blobs: asking for them, and sending them.
//!
//! Two ways for a file to become a blob:
//!
//! - [`Client::upload_file`] reads it once, hashed while it is sent: the protocol wants the digest only
//!   at the end (`POST`, `PATCH` with the content, `PUT ?digest=`). For what can't be there yet, as a
//!   fresh checkpoint: asking first would need the digest, and so a second read.
//! - [`Client::ensure_file`] hashes it, asks, and sends it only if it is not there: for what is pushed
//!   again and again with few changes.
//!
//! A failed upload starts again from its beginning, four attempts in all. It is not resumed by `Range`:
//! docker-registry 2.8 gives an upload up whose `PATCH` broke off (its upload state names an offset that
//! the stored part no longer has), and whatever comes after is `404`; so resuming would be a path that
//! the most common registry never takes.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, StatusCode};
use url::Url;

use super::reading::{Ended, Reading, blob_of_file};
use super::{Blob, Client, Error, full, retrying};

const BYTES: &str = "application/octet-stream";
/// Bytes per second that a registry stores at least, once it has them.
const SLOWEST_STORE: u64 = 20_000_000;

impl Client {
    /// Whether `repository` has the blob.
    pub async fn has_blob(&self, repository: &str, digest: &str) -> Result<bool, Error> {
        let attempted = format!("look for blob {digest} of {repository}");
        let path = format!("/v2/{repository}/blobs/{digest}");
        Ok(self.head(&attempted, &path).await?.is_some())
    }

    /// Whether the registry lets us push to `repository`: an upload is begun, and given up. Many
    /// registries answer everyone and ask for credentials only here.
    pub async fn may_push(&self, repository: &str) -> Result<(), Error> {
        let attempted = format!("begin an upload to {repository}");
        let place = retrying(|| self.begin_upload(&attempted, repository)).await?;
        // Not every registry lets an upload be given up; they drop what does not go on.
        let _ = self.transport.send(&attempted, Method::DELETE, place.as_str(), None).await;
        Ok(())
    }

    /// Sends a small blob, unless it is there.
    pub async fn ensure_blob(&self, repository: &str, content: &Bytes) -> Result<Blob, Error> {
        let blob = Blob::of(content);
        if self.has_blob(repository, &blob.digest).await? {
            return Ok(blob);
        }
        let attempted = format!("store blob {} in {repository}", blob.digest);
        retrying(|| async {
            let place = self.begin_upload(&attempted, repository).await?;
            let mut place = self.transport.place(&attempted, place.as_str())?;
            place.query_pairs_mut().append_pair("digest", &blob.digest);
            let body = Some((BYTES, full(content.clone())));
            let answer = self.transport.send(&attempted, Method::PUT, place.as_str(), body).await?;
            self.stored(&attempted, answer, &blob.digest).await
        })
        .await?;
        Ok(blob)
    }

    /// Sends a file as a blob, unless it is there. Reads it once to know, once more to send it.
    pub async fn ensure_file(&self, repository: &str, file: &Path) -> Result<Blob, Error> {
        let path = file.to_owned();
        let hashed = tokio::task::spawn_blocking(move || blob_of_file(&path)).await;
        let blob = hashed
            .unwrap_or_else(|_| Err(std::io::ErrorKind::Interrupted.into()))
            .map_err(|source| unreadable(file, source))?;
        if self.has_blob(repository, &blob.digest).await? {
            return Ok(blob);
        }
        self.upload_file(repository, file).await
    }

    /// Sends a file as a blob: one read, hashed while it is sent.
    pub async fn upload_file(&self, repository: &str, file: &Path) -> Result<Blob, Error> {
        let attempted = format!("send {} to {repository}", file.display());
        retrying(|| self.try_upload(&attempted, repository, file)).await
    }

    async fn try_upload(
        &self,
        attempted: &str,
        repository: &str,
        file: &Path,
    ) -> Result<Blob, Error> {
        let place = self.begin_upload(attempted, repository).await?;
        let mut reading = Reading::begin(file).await.map_err(|source| unreadable(file, source))?;
        let (size, body) = (reading.size, reading.body());
        let request = self
            .transport
            .request(Method::PATCH, &place)
            .header(CONTENT_TYPE, BYTES)
            .header(CONTENT_LENGTH, size);
        let sent = self.transport.stream(attempted, request, body, &reading.taken).await;
        // A file that can't be read breaks the upload off; it is then the cause to name.
        let digest = match reading.end().await {
            Ended::Failed(source) => return Err(unreadable(file, source)),
            Ended::Whole(digest) => Some(digest),
            Ended::Abandoned => None,
        };
        let good = [StatusCode::ACCEPTED, StatusCode::NO_CONTENT];
        let answer = self.transport.expect(attempted, sent?, &good).await?;
        let Some(digest) = digest else {
            return Err(self.transport.nonsense(attempted, "it took only a part of the content"));
        };
        let mut place = self.transport.location(attempted, &answer)?;
        place.query_pairs_mut().append_pair("digest", &digest);
        let request = self.transport.request(Method::PUT, &place).header(CONTENT_TYPE, BYTES);
        // Some registries read it all again, or copy it into another store.
        let limit = self.transport.patience.stall + Duration::from_secs(size / SLOWEST_STORE);
        let empty = full(Bytes::new());
        let answer = self.transport.send_within(attempted, request, empty, limit).await?;
        self.stored(attempted, answer, &digest).await?;
        Ok(Blob { digest, size })
    }

    async fn begin_upload(&self, attempted: &str, repository: &str) -> Result<Url, Error> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let answer = self.transport.send(attempted, Method::POST, &path, None).await?;
        let answer = self.transport.expect(attempted, answer, &[StatusCode::ACCEPTED]).await?;
        self.transport.location(attempted, &answer)
    }
}

fn unreadable(file: &Path, source: std::io::Error) -> Error {
    Error::File { file: file.display().to_string(), source }
}
