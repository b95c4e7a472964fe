//! `POST /checkpoint`: an archive from another node, hashed while it is written.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Query, Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shadow_checkpoint::agent::wire::{Arrived, Origin};
use shadow_checkpoint::registry::Blob;
use tokio::sync::mpsc;

use crate::answer::No;
use crate::orders::{offer_of, place};
use crate::store::remove;
use crate::{Agent, SLOWEST};

/// Form fields beside the archive are shorter.
const LONGEST_FIELD: usize = 1024;
/// Pieces of the archive that may wait for the disk.
const AHEAD: usize = 8;
/// How long, and how much, is listened to a sender whom nothing will be taken from: one that is cut
/// off in the middle of a sentence does not hear the answer.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 64 << 20);

#[derive(Deserialize)]
pub(crate) struct Which {
    transfer: String,
}

/// See the module.
pub(crate) async fn checkpoint(
    State(agent): State<Arc<Agent>>,
    Query(Which { transfer }): Query<Which>,
    request: Request,
) -> Result<Json<Arrived>, No> {
    let headers = request.headers().clone();
    match admit(&agent, &transfer, &headers).await {
        Ok(Admitted::Come { size, origin, door }) => {
            let _alone = door.lock_owned().await;
            take(&agent, &transfer, &origin, size, request).await.map(Json)
        }
        Ok(Admitted::Here(arrived)) => {
            let_finish(request.into_body()).await;
            Ok(Json(arrived))
        }
        Err(no) => {
            let_finish(request.into_body()).await;
            Err(no)
        }
    }
}

enum Admitted {
    Come { size: u64, origin: Origin, door: Arc<tokio::sync::Mutex<()>> },
    Here(Arrived),
}

async fn admit(agent: &Agent, transfer: &str, headers: &HeaderMap) -> Result<Admitted, No> {
    let known = agent.gate.who(headers).await?;
    let not_expected = || {
        let why = format!("no checkpoint of transfer {transfer} is expected from this sender");
        No::refused(StatusCode::FORBIDDEN, why)
    };
    let found = agent.store.expected(transfer, |sender| known.is(sender));
    let (origin, door) = found.ok_or_else(not_expected)?;
    if let Some(offer) = agent.store.offered(transfer) {
        return Ok(Admitted::Here(offer.arrived.clone()));
    }
    let size = headers.get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    let size: u64 = size.ok_or_else(|| {
        No::refused(StatusCode::LENGTH_REQUIRED, "an upload has to say how long it is")
    })?;
    fits(agent, size)?;
    Ok(Admitted::Come { size, origin, door })
}

/// Before a byte is taken.
fn fits(agent: &Agent, size: u64) -> Result<(), No> {
    let settings = &agent.settings;
    if size > settings.largest.saturating_add(LONGEST_FIELD as u64 * 4) {
        let why = format!(
            "the archive has {size} bytes, and at most {} are taken; raise --largest-archive",
            settings.largest
        );
        return Err(No::refused(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    let disk = rustix::fs::statvfs(&settings.staging);
    let free = disk.map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    if size.saturating_add(settings.reserve) > free {
        let why = format!(
            "the archive has {size} bytes, and the staging disk has {free} left, of which {} stay \
             free; make room on the node",
            settings.reserve
        );
        return Err(No::refused(StatusCode::INSUFFICIENT_STORAGE, why));
    }
    Ok(())
}

async fn let_finish(body: Body) {
    let listen = async {
        let (mut pieces, mut heard) = (body.into_data_stream(), 0);
        while let Some(Ok(piece)) = pieces.next().await {
            heard += piece.len();
            if heard > LINGER.1 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER.0, listen).await;
}

async fn take(
    agent: &Agent,
    transfer: &str,
    origin: &Origin,
    size: u64,
    request: Request,
) -> Result<Arrived, No> {
    // Another upload of the same may have come first.
    if let Some(offer) = agent.store.offered(transfer) {
        let_finish(request.into_body()).await;
        return Ok(offer.arrived.clone());
    }
    let _turn = turn(agent).await?;
    let begun = Instant::now();
    let limit = agent.settings.patience.upload + Duration::from_secs(size / SLOWEST);
    let form = Multipart::from_request(request, &()).await;
    let form = form.map_err(|error| bad(format!("the upload is no form: {error}")))?;
    let taking = read_form(agent, transfer, origin, form);
    let (part, layer) = tokio::time::timeout(limit, taking).await.map_err(|_| {
        let why = format!("the upload took longer than {} s", limit.as_secs());
        No::passing(StatusCode::REQUEST_TIMEOUT, why)
    })??;
    let container = &origin.container;
    let place = place(agent, transfer);
    let offer = offer_of(part.0.clone(), true, layer, origin, &place, begun).await?;
    part.keep();
    let arrived = offer.arrived.clone();
    if agent.store.offer(transfer, offer, true).is_none() {
        let why = format!("transfer {transfer} was given up meanwhile");
        return Err(No::refused(StatusCode::GONE, why));
    }
    tracing::info!(transfer, container, bytes = arrived.bytes, "a checkpoint has arrived");
    Ok(arrived)
}

/// Its turn among those that come in.
async fn turn(agent: &Agent) -> Result<tokio::sync::SemaphorePermit<'_>, No> {
    let busy = || {
        let why = "too many checkpoints come in already";
        No::passing(StatusCode::SERVICE_UNAVAILABLE, why)
    };
    let _waits = agent.queue.try_acquire().map_err(|_| busy())?;
    agent.incoming.acquire().await.map_err(|_| busy())
}

fn bad(why: impl Into<String>) -> No {
    No::refused(StatusCode::BAD_REQUEST, why)
}

fn broken(error: &MultipartError) -> No {
    let why = format!("the upload broke off: {}", error.body_text());
    No { status: error.status(), why, passing: true }
}

/// The file that is written. It goes with this, unless it is kept.
struct Part(PathBuf, bool);

impl Part {
    fn keep(mut self) {
        self.1 = true;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.1 {
            remove(&self.0);
        }
    }
}

/// `containerName`, `checkpoint` and `digest`, in this order.
async fn read_form(
    agent: &Agent,
    transfer: &str,
    origin: &Origin,
    mut form: Multipart,
) -> Result<(Part, Blob), No> {
    let container = &origin.container;
    if short(agent, next(agent, &mut form, "containerName").await?).await? != *container {
        return Err(bad(format!("a checkpoint of container {container} is expected")));
    }
    let part = Part(agent.settings.staging.join(format!("{transfer}.tar")), false);
    let layer = write(agent, &part.0, next(agent, &mut form, "checkpoint").await?).await?;
    if short(agent, next(agent, &mut form, "digest").await?).await? != layer.digest {
        let why = "the archive was damaged on its way: its digest is another";
        return Err(No::passing(StatusCode::UNPROCESSABLE_ENTITY, why));
    }
    Ok((part, layer))
}

/// The next part of the form, which is `name`.
async fn next<'a>(
    agent: &Agent,
    form: &'a mut Multipart,
    name: &'static str,
) -> Result<Field<'a>, No> {
    let field = patiently(agent, form.next_field()).await?.map_err(|error| broken(&error))?;
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

async fn patiently<T>(agent: &Agent, next: impl Future<Output = T>) -> Result<T, No> {
    let limit = agent.settings.patience.piece;
    tokio::time::timeout(limit, next).await.map_err(|_| {
        let why = format!("nothing came for {} s", limit.as_secs());
        No::passing(StatusCode::REQUEST_TIMEOUT, why)
    })
}

async fn short(agent: &Agent, mut field: Field<'_>) -> Result<String, No> {
    let mut text = Vec::new();
    loop {
        let piece = patiently(agent, field.chunk()).await?.map_err(|error| broken(&error))?;
        let Some(piece) = piece else { break };
        text.extend_from_slice(&piece);
        if text.len() > LONGEST_FIELD {
            return Err(bad("a field of the form is too long"));
        }
    }
    String::from_utf8(text).map_err(|_| bad("a field of the form is not text"))
}

async fn write(agent: &Agent, path: &Path, mut field: Field<'_>) -> Result<Blob, No> {
    let (room, pieces) = mpsc::channel(AHEAD);
    let (file, largest) = (path.to_owned(), agent.settings.largest);
    let writer = tokio::task::spawn_blocking(move || write_all(&file, pieces, largest));
    loop {
        let piece = patiently(agent, field.chunk()).await?.map_err(|error| broken(&error))?;
        let Some(piece) = piece else { break };
        if room.send(piece).await.is_err() {
            break;
        }
    }
    drop(room);
    let ending = || No::passing(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending");
    writer.await.map_err(|_| ending())?
}

fn write_all(path: &Path, mut pieces: mpsc::Receiver<Bytes>, largest: u64) -> Result<Blob, No> {
    let failed = |error: std::io::Error| {
        let why = format!("write {}: {error}", path.display());
        No::passing(StatusCode::INSUFFICIENT_STORAGE, why)
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(piece) = pieces.blocking_recv() {
        size += piece.len() as u64;
        if size > largest {
            let why = format!("the archive has more than {largest} bytes; raise --largest-archive");
            return Err(No::refused(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        hash.update(&piece);
        file.write_all(&piece).map_err(failed)?;
    }
    Ok(Blob { digest: format!("sha256:{:x}", hash.finalize()), size })
}
