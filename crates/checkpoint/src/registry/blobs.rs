//! Blobs: asking for them, and sending them.
//!
//! Two ways for a file to become a blob:
//!
//! - [`Client::upload_file`] reads it once, hashed while it is sent: the protocol wants the digest only
//!   at the end. For what can't be there yet, as a fresh checkpoint: asking first would need the digest,
//!   and so a second read.
//! - [`Client::ensure_file`] hashes it, asks, and sends it only if it is not there: for what is pushed
//!   again and again with few changes.

use std::path::Path;

use bytes::Bytes;
use http::Method;

use super::reading::blob_of_file;
use super::transport::Errand;
use super::upload::{BYTES, unreadable};
use super::{Blob, Client, Error, retrying};

impl Client {
    /// Whether `repository` has the blob.
    pub async fn has_blob(&self, repository: &str, digest: &str) -> Result<bool, Error> {
        let errand = Errand::new(format!("look for blob {digest} of {repository}"), repository);
        let path = format!("/v2/{repository}/blobs/{digest}");
        Ok(self.head(&errand, &path).await?.is_some())
    }

    /// Whether the registry lets us push to `repository`: an upload is begun, and given up. Many
    /// registries answer everyone and ask for credentials only here.
    pub async fn may_push(&self, repository: &str) -> Result<(), Error> {
        let errand = Errand::new(format!("begin an upload to {repository}"), repository);
        let upload = retrying(|| self.begin_upload(&errand)).await?;
        // Not every registry lets an upload be given up; they drop what does not go on.
        let place = upload.place.as_str();
        let _ = self.transport.send(&errand, Method::DELETE, place, None).await;
        Ok(())
    }

    /// Sends a small blob, unless it is there.
    pub async fn ensure_blob(&self, repository: &str, content: &Bytes) -> Result<Blob, Error> {
        let blob = Blob::of(content);
        if self.has_blob(repository, &blob.digest).await? {
            return Ok(blob);
        }
        let errand = Errand::new(format!("store blob {} in {repository}", blob.digest), repository);
        retrying(|| async {
            let mut place = self.begin_upload(&errand).await?.place;
            place.query_pairs_mut().append_pair("digest", &blob.digest);
            let content = Some((BYTES, content.clone()));
            let answer = self.transport.send(&errand, Method::PUT, place.as_str(), content).await?;
            self.stored(&errand.attempted, answer, &blob.digest).await
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
}
