//! A file becomes a blob: `POST`, a `PATCH` for each of its parts, `PUT ?digest=`.
//!
//! ```text
//! begin ──► part ──► part ──► … ──► finish
//!   ▲         └─broke off─► look ──from what the registry has──► part
//!   └──────────it has nothing─┘
//! ```
//!
//! What the registry has of an upload that broke off is not sent again, if the registry says so (`GET`
//! of the upload: `204` and `Range`). docker-registry 2.8 does between two parts; of a part that broke
//! off it keeps the beginning, finds then that its upload state names another offset, and drops the
//! upload (`404`). With it, as with a registry that has forgotten the upload, we begin again.
//!
//! Not every registry takes several parts: Google's Artifact Registry wants one. A registry that
//! refuses a part is sent the file in one.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::BackoffBuilder as _;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use url::Url;

use super::reading::Reading;
use super::transport::{Errand, request};
use super::{Blob, Client, Error, pauses, warn};

pub(super) const BYTES: &str = "application/octet-stream";
/// Bytes per `PATCH`. Less than what proxies let through (Cloudflare: 100 MB), more than what stores
/// want (S3: 5 MiB), and little to send again. To docker-registry 2.8 it is as fast as one `PATCH` for
/// all; 16 MiB are slower by a fifth.
pub(super) const PART: u64 = 64 << 20;
/// In the answer to `POST`: the least that a part must have, but for the last.
const LEAST: &str = "oci-chunk-min-length";
/// Bytes per second that a registry stores at least, once it has them.
const SLOWEST_STORE: u64 = 20_000_000;

/// An upload under way.
pub(super) struct Upload {
    /// Where it goes on.
    pub place: Url,
    least: u64,
    /// Up to where the registry has the file.
    at: u64,
    /// Up to where it was sent.
    sent: u64,
    /// How many parts were tried.
    parts: u32,
    broke_off: bool,
}

impl Upload {
    /// Up to where the next part goes. What is left of one that broke off is a part of its own, if it
    /// is long enough.
    fn end(&self, part: u64) -> u64 {
        let part = part.max(self.least);
        let end = (self.at / part).saturating_add(1).saturating_mul(part);
        if end - self.at < self.least { end.saturating_add(part) } else { end }
    }
}

/// A file that is being sent.
struct Sending<'a> {
    file: &'a Path,
    size: u64,
    /// None while it is read, or if the reader was lost.
    reading: Option<Reading>,
    part: u64,
    /// Up to where a registry ever had it.
    furthest: u64,
}

impl Sending<'_> {
    /// The file as far as it was read, or from its beginning.
    async fn reading(&mut self) -> Result<Reading, Error> {
        match self.reading.take() {
            Some(reading) => Ok(reading),
            None => Reading::begin(self.file).await.map_err(|source| unreadable(self.file, source)),
        }
    }

    /// Prepares for another attempt; whether there is any sense in one.
    fn recover(&mut self, upload: &mut Option<Upload>, error: &Error) -> bool {
        if let Error::WrongDigest { .. } = error {
            *upload = None;
            return true;
        }
        if error.is_passing() {
            if let Some(upload) = upload {
                upload.broke_off = true;
            }
            return true;
        }
        // A smaller part might do, but not a larger one.
        let too_large = |status| status == StatusCode::PAYLOAD_TOO_LARGE;
        if !matches!(error, Error::Answer { status, .. } if !too_large(*status)) {
            return false;
        }
        let in_parts =
            upload.take().is_some_and(|upload| upload.parts > 1 || self.part < self.size);
        self.part = u64::MAX;
        in_parts
    }
}

impl Client {
    /// Sends a file as a blob: one read, hashed while it is sent. After a failure there are three more
    /// attempts, and three again whenever a part more has arrived.
    pub async fn upload_file(&self, repository: &str, file: &Path) -> Result<Blob, Error> {
        let attempted = format!("send {} to {repository}", file.display());
        let errand = Errand::new(attempted, repository);
        let reading = Reading::begin(file).await.map_err(|source| unreadable(file, source))?;
        let (size, part) = (reading.size, self.part);
        let mut sending = Sending { file, size, reading: Some(reading), part, furthest: 0 };
        let (mut upload, mut left) = (None, pauses().build());
        loop {
            let before = sending.furthest;
            let error = match self.go_on(&errand, &mut sending, &mut upload).await {
                Ok(blob) => return Ok(blob),
                Err(error) => error,
            };
            if sending.furthest > before {
                left = pauses().build();
            }
            let Some(pause) = left.next().filter(|_| sending.recover(&mut upload, &error)) else {
                return Err(error);
            };
            warn(&error);
            tokio::time::sleep(pause).await;
        }
    }

    async fn go_on(
        &self,
        errand: &Errand,
        sending: &mut Sending<'_>,
        upload: &mut Option<Upload>,
    ) -> Result<Blob, Error> {
        if upload.as_ref().is_some_and(|upload| upload.broke_off) {
            self.look(errand, upload).await?;
            // What got lost may have been the answer to the last request.
            let digest = sending.reading.as_ref().and_then(Reading::digest);
            if let (None, Some(digest)) = (&upload, digest)
                && self.has_blob(&errand.repository, &digest).await?
            {
                return Ok(Blob { digest, size: sending.size });
            }
        }
        let upload = match upload {
            Some(upload) => upload,
            none => none.insert(self.begin_upload(errand).await?),
        };
        while upload.at < sending.size {
            self.send_part(errand, sending, upload).await?;
        }
        self.finish(errand, sending, upload).await
    }

    pub(super) async fn begin_upload(&self, errand: &Errand) -> Result<Upload, Error> {
        let path = format!("/v2/{}/blobs/uploads/", errand.repository);
        let answer = self.transport.send(errand, Method::POST, &path, None).await?;
        let good = [StatusCode::ACCEPTED];
        let answer = self.transport.expect(&errand.attempted, answer, &good).await?;
        let place = self.transport.location(&errand.attempted, &answer)?;
        let least = answer.headers().get(LEAST).and_then(|value| value.to_str().ok());
        let least = least.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
        Ok(Upload { place, least, at: 0, sent: 0, parts: 0, broke_off: false })
    }

    /// Asks what the registry has of an upload that broke off. Without anything, it is none.
    async fn look(&self, errand: &Errand, upload: &mut Option<Upload>) -> Result<(), Error> {
        let Some(broken) = upload else { return Ok(()) };
        let place = broken.place.clone();
        let answer = self.transport.send(errand, Method::GET, place.as_str(), None).await?;
        let status = answer.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return self.transport.expect(&errand.attempted, answer, &[]).await.map(|_| ());
        }
        let at = if status.is_success() { arrived(answer.headers()) } else { None };
        match at.filter(|at| *at <= broken.sent) {
            Some(at) => {
                broken.place = self.transport.location(&errand.attempted, &answer).unwrap_or(place);
                broken.at = at;
                broken.broke_off = false;
                tracing::info!("{}: going on from byte {at}", errand.attempted);
            }
            None => *upload = None,
        }
        Ok(())
    }

    async fn send_part(
        &self,
        errand: &Errand,
        sending: &mut Sending<'_>,
        upload: &mut Upload,
    ) -> Result<(), Error> {
        let end = upload.end(sending.part).min(sending.size);
        let range = upload.at..end;
        let place = upload.place.clone();
        let method = Method::PATCH;
        let first = self.transport.authorization(errand, &method, &place).await?;
        let patch = self.patch(errand, sending, upload, &range, first.as_ref());
        let mut answer = patch.await?;
        // A token may end before it should; of content that was refused nothing was taken.
        let token = self.transport.challenged(errand, &method, &place, first.as_ref(), &answer);
        if let Some(token) = token.await? {
            answer = self.patch(errand, sending, upload, &range, Some(&token)).await?;
        }
        // Amazon's registry says 201.
        let good = [StatusCode::ACCEPTED, StatusCode::NO_CONTENT, StatusCode::CREATED];
        let answer = self.transport.expect(&errand.attempted, answer, &good).await?;
        upload.place = self.transport.location(&errand.attempted, &answer)?;
        upload.at = end;
        sending.furthest = sending.furthest.max(end);
        Ok(())
    }

    async fn patch(
        &self,
        errand: &Errand,
        sending: &mut Sending<'_>,
        upload: &mut Upload,
        range: &Range<u64>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Error> {
        let length = range.end - range.start;
        let mut request = request(&Method::PATCH, &upload.place, authorization)
            .header(CONTENT_TYPE, BYTES)
            .header(CONTENT_LENGTH, length);
        if length < sending.size {
            request = request.header(CONTENT_RANGE, format!("{}-{}", range.start, range.end - 1));
        }
        let mut part = sending.reading().await?.part(range.clone());
        let (body, taken) = (part.body(), part.taken.clone());
        let answer = self.transport.stream(&errand.attempted, request, body, &taken).await;
        let taken = taken.load(Ordering::Relaxed);
        upload.parts += 1;
        upload.sent = upload.sent.max(range.start + taken);
        // A file that can't be read breaks the upload off; it is then the cause to name.
        sending.reading = part.end().await.map_err(|source| unreadable(sending.file, source))?;
        let answer = answer?;
        if answer.status().is_success() && taken < length {
            let why = "it took only a part of the content";
            return Err(self.transport.nonsense(&errand.attempted, why));
        }
        Ok(answer)
    }

    async fn finish(
        &self,
        errand: &Errand,
        sending: &mut Sending<'_>,
        upload: &Upload,
    ) -> Result<Blob, Error> {
        let digest = sending.reading.as_ref().and_then(Reading::digest);
        let stuck = || unreadable(sending.file, std::io::ErrorKind::TimedOut.into());
        let digest = digest.ok_or_else(stuck)?;
        let mut place = upload.place.clone();
        place.query_pairs_mut().append_pair("digest", &digest);
        // Some registries read it all again, or copy it into another store.
        let limit =
            self.transport.patience.stall + Duration::from_secs(sending.size / SLOWEST_STORE);
        let empty = Some((BYTES, Bytes::new()));
        let answer = self.transport.send_within(errand, Method::PUT, &place, empty, limit).await?;
        self.stored(&errand.attempted, answer, &digest).await?;
        Ok(Blob { digest, size: sending.size })
    }
}

/// Up to where a registry has an upload, by its `Range`, whose end is inclusive. `0-0` stands for
/// nothing, too.
fn arrived(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(RANGE)?.to_str().ok()?.trim();
    let (start, end) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    let end = end.parse::<u64>().ok().filter(|end| start == "0" && *end > 0)?;
    end.checked_add(1)
}

pub(super) fn unreadable(file: &Path, source: std::io::Error) -> Error {
    Error::File { file: file.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_arrived_is_read_as_registries_write_it() {
        let read = |range: &str| {
            arrived(&HeaderMap::from_iter([(RANGE, HeaderValue::from_str(range).unwrap())]))
        };
        assert_eq!(
            (read("0-1023"), read("bytes=0-9"), read("0-1")),
            (Some(1024), Some(10), Some(2))
        );
        let none = ["0-0", "", "-", "0-", "5-9", "0--9", "bytes 0-9/10", "0-18446744073709551615"];
        for range in none {
            assert_eq!(read(range), None, "{range}");
        }
        assert_eq!(arrived(&HeaderMap::new()), None);
    }
}
