//! The form in which an archive comes: `containerName`, `checkpoint` and `digest`, in this order.
//!
//! The sender has to keep a pace, and may not claim to write fields that never end. Public because it is
//! fuzzed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::StatusCode;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::answer::No;
use crate::{Patience, SLOWEST};

/// Form fields beside the archive are shorter.
const LONGEST_FIELD: usize = 1024;
/// The form around the archive, in bytes.
pub(crate) const AROUND: u64 = 4 * LONGEST_FIELD as u64;
/// Of the upload, so much may have come in that is no field's content yet: a parser keeps that.
const MOST_UNREAD: usize = 1 << 20;

/// A form that comes in.
pub struct Form {
    parts: Multipart,
    pace: Pace,
    unread: Arc<AtomicUsize>,
}

/// How long the next piece may take. Who has brought little has little time left, whatever it said
/// that it would bring.
struct Pace {
    patience: Patience,
    begun: Instant,
    received: u64,
}

impl Pace {
    async fn keep<T>(&self, next: impl Future<Output = T>) -> Result<T, No> {
        let time = self.patience.upload + Duration::from_secs(self.received / SLOWEST);
        let left = time.saturating_sub(self.begun.elapsed()).min(self.patience.piece);
        tokio::time::timeout(left, next).await.map_err(|_| {
            let why = format!(
                "the upload is too slow: nothing came for {left:?}, {} bytes in {:?}",
                self.received,
                self.begun.elapsed()
            );
            No::passing(StatusCode::REQUEST_TIMEOUT, why)
        })
    }
}

pub(crate) fn bad(why: impl Into<String>) -> No {
    No::refused(StatusCode::BAD_REQUEST, why)
}

impl Form {
    /// The form in `request`, whatever else that is.
    pub async fn of(request: Request, patience: Patience) -> Result<Self, No> {
        let unread = Arc::new(AtomicUsize::new(0));
        let count = unread.clone();
        let counted = move |piece: Result<Bytes, axum::Error>| {
            let piece = piece?;
            let before = count.fetch_add(piece.len(), Ordering::Relaxed);
            if before + piece.len() > MOST_UNREAD {
                return Err(axum::Error::new(std::io::Error::from(
                    std::io::ErrorKind::FileTooLarge,
                )));
            }
            Ok(piece)
        };
        let request = request.map(|body| Body::from_stream(body.into_data_stream().map(counted)));
        let parts = Multipart::from_request(request, &()).await;
        let parts = parts.map_err(|error| bad(format!("the upload is no form: {error}")))?;
        let pace = Pace { patience, begun: Instant::now(), received: 0 };
        Ok(Self { parts, pace, unread })
    }

    /// The first field.
    pub async fn container(&mut self) -> Result<String, No> {
        self.short("containerName").await
    }

    /// The second one, piece by piece, as long as `to` takes them.
    pub async fn archive(&mut self, to: mpsc::Sender<Bytes>) -> Result<(), No> {
        let mut field = next(&mut self.parts, &self.pace, &self.unread, "checkpoint").await?;
        while let Some(piece) = piece(&mut field, &mut self.pace, &self.unread).await? {
            if to.send(piece).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The last one.
    pub async fn digest(&mut self) -> Result<String, No> {
        self.short("digest").await
    }

    async fn short(&mut self, name: &'static str) -> Result<String, No> {
        let mut field = next(&mut self.parts, &self.pace, &self.unread, name).await?;
        let mut text = Vec::new();
        while let Some(piece) = piece(&mut field, &mut self.pace, &self.unread).await? {
            text.extend_from_slice(&piece);
            if text.len() > LONGEST_FIELD {
                return Err(bad(format!("the form's {name} is too long")));
            }
        }
        String::from_utf8(text).map_err(|_| bad(format!("the form's {name} is not text")))
    }
}

/// The next part of the form, which is `name`.
async fn next<'a>(
    form: &'a mut Multipart,
    pace: &Pace,
    unread: &AtomicUsize,
    name: &'static str,
) -> Result<Field<'a>, No> {
    let field = pace.keep(form.next_field()).await?.map_err(|error| broken(&error, unread))?;
    match field {
        Some(field) if field.name() == Some(name) => Ok(field),
        Some(_) => {
            Err(bad("an upload is a form of containerName, checkpoint and digest, in this order"))
        }
        None => {
            Err(No::passing(StatusCode::BAD_REQUEST, format!("the upload ended before its {name}")))
        }
    }
}

async fn piece(
    field: &mut Field<'_>,
    pace: &mut Pace,
    unread: &AtomicUsize,
) -> Result<Option<Bytes>, No> {
    let piece = pace.keep(field.chunk()).await?.map_err(|error| broken(&error, unread))?;
    unread.store(0, Ordering::Relaxed);
    pace.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
    Ok(piece)
}

fn broken(error: &MultipartError, unread: &AtomicUsize) -> No {
    if unread.load(Ordering::Relaxed) > MOST_UNREAD {
        return bad("the upload is a form whose headers have no end");
    }
    let why = format!("the upload broke off: {}", error.body_text());
    No::passing(StatusCode::BAD_REQUEST, why)
}
