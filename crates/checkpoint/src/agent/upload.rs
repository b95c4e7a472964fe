//! An archive on its way to an agent: one read, hashed while it is sent.
//!
//! `POST /checkpoint` is a form of three parts: `containerName`, `checkpoint`, which is the archive, and
//! at its end `digest`, which is known only then.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::Method;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use super::wire::{Arrived, TRANSFER};
use super::{Agent, Body, Error};
use crate::registry::{Part, Reading};

/// For the next piece to move.
const STALL: Duration = Duration::from_secs(30);
/// For the answer, when all of it was sent: the archive is looked through.
const ANSWER: Duration = Duration::from_mins(1);
/// No archive has this in it by chance, and one that has it on purpose breaks only its own upload.
const BOUNDARY: &str = "ms2m-7d6f0c1e9a5b4f38-checkpoint";
/// As long as any other.
const NO_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

impl Agent {
    /// Sends the archive at `archive`, the checkpoint of `container`. May be repeated: what has arrived
    /// is not taken twice.
    pub async fn upload(
        &self,
        transfer: &str,
        archive: &Path,
        container: &str,
    ) -> Result<Arrived, Error> {
        let attempted = format!("send {}", archive.display());
        let unreadable = |source| Error::Archive { archive: archive.display().to_string(), source };
        let reading = Reading::begin(archive).await.map_err(unreadable)?;
        let size = reading.size;
        let mut part = reading.part(0..size);
        let taken = part.taken.clone();
        let (head, end) = (head(container), end(NO_DIGEST));
        let length = head.len() as u64 + size + end.len() as u64;
        let file = part.body().into_data_stream();
        let broken = Arc::new(OnceLock::new());
        let body = form(head, file, part, broken.clone());
        let request = self
            .request(Method::POST, &format!("/checkpoint?{TRANSFER}={transfer}"))
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
            .header(CONTENT_LENGTH, length);
        let answer = {
            let mut sending = std::pin::pin!(self.send(&attempted, request, body));
            let mut before = 0;
            loop {
                let all = taken.load(Ordering::Relaxed) == size;
                let limit = if all { ANSWER } else { STALL };
                match tokio::time::timeout(limit, &mut sending).await {
                    Ok(answer) => break answer,
                    Err(_) if moved(&taken, &mut before) => {}
                    Err(_) => break Err(self.late(&attempted, limit)),
                }
            }
        };
        // A file that can't be read breaks the upload off; it is then the cause to name.
        if let Some(kind) = broken.get() {
            return Err(unreadable((*kind).into()));
        }
        self.read(&attempted, answer?).await
    }
}

fn moved(taken: &AtomicU64, before: &mut u64) -> bool {
    let now = taken.load(Ordering::Relaxed);
    std::mem::replace(before, now) < now
}

fn form(
    head: String,
    file: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    part: Part,
    broken: Arc<OnceLock<io::ErrorKind>>,
) -> Body {
    let end = stream::once(async move {
        let digest = part.end().await?.and_then(|reading| reading.digest());
        digest.map(|digest| Bytes::from(end(&digest))).ok_or(io::ErrorKind::BrokenPipe.into())
    });
    let parts = stream::once(async { Ok(Bytes::from(head)) }).chain(file).chain(end);
    let frames = parts.map(move |part: io::Result<Bytes>| {
        if let Err(error) = &part {
            let _ = broken.set(error.kind());
        }
        part.map(Frame::data)
    });
    StreamBody::new(frames).boxed_unsync()
}

fn head(container: &str) -> String {
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"containerName\"\r\n\r\n{container}\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"checkpoint\"; \
         filename=\"checkpoint.tar\"\r\nContent-Type: application/x-tar\r\n\r\n"
    )
}

fn end(digest: &str) -> String {
    format!(
        "\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"digest\"\r\n\r\n{digest}\r\n\
         --{BOUNDARY}--\r\n"
    )
}
