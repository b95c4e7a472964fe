//! `POST /checkpoint`: an archive from another node, hashed while it is written.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shadow_checkpoint::agent::wire::{Arrived, Origin, is_name};
use shadow_checkpoint::registry::Blob;
use tokio::sync::{SemaphorePermit, mpsc};

use crate::answer::No;
use crate::form::{AROUND, Form, bad};
use crate::orders::{ending, given_up, offer_of, place};
use crate::staging::{Archive, Writer};
use crate::store::Entrance;
use crate::{Agent, SLOWEST};

/// Pieces of the archive that may wait for the disk.
const AHEAD: usize = 8;

#[derive(Deserialize)]
pub(crate) struct Which {
    transfer: String,
}

/// See the module.
pub(crate) async fn checkpoint(
    State(agent): State<Arc<Agent>>,
    which: Result<Query<Which>, QueryRejection>,
    request: Request,
) -> Result<Json<Arrived>, No> {
    let transfer = which.ok().map(|Query(Which { transfer })| transfer);
    let transfer = transfer.unwrap_or_default();
    match admit(&agent, &transfer, request.headers()).await? {
        Admitted::Here(arrived) => Ok(Json(arrived)),
        Admitted::Come { size, origin, entrance } => tokio::select! {
            taken = take(&agent, &transfer, &origin, &entrance, size, request) => taken.map(Json),
            () = entrance.closed() => Err(given_up(&transfer)),
        },
    }
}

enum Admitted {
    Come { size: u64, origin: Origin, entrance: Entrance },
    Here(Arrived),
}

/// Before a byte is taken.
async fn admit(agent: &Agent, transfer: &str, headers: &HeaderMap) -> Result<Admitted, No> {
    let known = agent.gate.who(headers).await?;
    if !is_name(transfer) {
        return Err(bad("an upload says of which transfer it is: ?transfer=name"));
    }
    let not_expected = || {
        let why = format!("no checkpoint of transfer {transfer} is expected from this sender");
        No::refused(StatusCode::FORBIDDEN, why)
    };
    let found = agent.store.expected(transfer, |sender| known.is(sender));
    let (origin, entrance) = found.ok_or_else(not_expected)?;
    if let Some(offer) = agent.store.offered(transfer) {
        return Ok(Admitted::Here(offer.arrived.clone()));
    }
    let size = headers.get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    let size: u64 = size.ok_or_else(|| {
        No::refused(StatusCode::LENGTH_REQUIRED, "an upload has to say how long it is")
    })?;
    let largest = agent.settings.largest;
    if size > largest.saturating_add(AROUND) {
        let why = format!(
            "the archive has {size} bytes, and at most {largest} are taken; raise --largest-archive"
        );
        return Err(No::refused(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    Room::promise(agent, size)?;
    Ok(Admitted::Come { size, origin, entrance })
}

/// Room on the staging disk that is kept for an upload, and not written to yet.
struct Room {
    left: Mutex<u64>,
    promised: Arc<Mutex<u64>>,
}

fn lock(bytes: &Mutex<u64>) -> std::sync::MutexGuard<'_, u64> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    fn promise(agent: &Agent, size: u64) -> Result<Self, No> {
        let settings = &agent.settings;
        let mut promised = lock(&agent.promised);
        let disk = rustix::fs::statvfs(&settings.staging);
        let free = disk.map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let needed = size.saturating_add(settings.reserve);
        if needed.saturating_add(*promised) > free {
            let why = format!(
                "the archive has {size} bytes, and the staging disk has {free} left, of which {} \
                 stay free and {promised} are of uploads that come in; make room on the node",
                settings.reserve
            );
            let passing = needed <= free;
            return Err(No { status: StatusCode::INSUFFICIENT_STORAGE, why, passing });
        }
        *promised = promised.saturating_add(size);
        Ok(Self { left: Mutex::new(size), promised: agent.promised.clone() })
    }

    /// The disk itself knows of these bytes now.
    fn written(&self, bytes: u64) {
        let mut left = lock(&self.left);
        let bytes = bytes.min(*left);
        *left -= bytes;
        let mut promised = lock(&self.promised);
        *promised = promised.saturating_sub(bytes);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.written(u64::MAX);
    }
}

async fn take(
    agent: &Agent,
    transfer: &str,
    origin: &Origin,
    entrance: &Entrance,
    size: u64,
    request: Request,
) -> Result<Arrived, No> {
    let patience = agent.settings.patience;
    // Senders give up after a while, and are not seen to have gone before their turn comes.
    let wait = patience.piece / 2;
    let alone = tokio::time::timeout(wait, entrance.door.lock()).await;
    let _alone = alone.map_err(|_| busy("another upload of this checkpoint goes on"))?;
    // Another upload of the same may have come first.
    if let Some(offer) = agent.store.offered(transfer) {
        return Ok(offer.arrived.clone());
    }
    let _turn = turn(agent, wait).await?;
    let room = Room::promise(agent, size)?;
    let begun = Instant::now();
    let limit = patience.upload + std::time::Duration::from_secs(size / SLOWEST);
    let form = Form::of(request, patience).await?;
    let path = agent.settings.staging.join(format!("{transfer}-{}.tar", agent.store.number()));
    let taking = write(agent, form, &origin.container, path, room);
    let (archive, layer) = tokio::time::timeout(limit, taking).await.map_err(|_| {
        let why = format!("the upload took longer than {} s", limit.as_secs());
        No::passing(StatusCode::REQUEST_TIMEOUT, why)
    })??;
    let offer = offer_of(Arc::new(archive), layer, origin, &place(agent, transfer), begun).await?;
    let arrived = offer.arrived.clone();
    agent.store.offer(transfer, offer, entrance).ok_or_else(|| given_up(transfer))?;
    let container = &origin.container;
    tracing::info!(transfer, container, bytes = arrived.bytes, "a checkpoint has arrived");
    Ok(arrived)
}

/// The archive of `container`, at `path`. What was written so far goes with a sender that leaves.
async fn write(
    agent: &Agent,
    mut form: Form,
    container: &str,
    path: PathBuf,
    room: Room,
) -> Result<(Archive, Blob), No> {
    if form.container().await? != container {
        return Err(bad(format!("a checkpoint of container {container} is expected")));
    }
    let (largest, plain) = (agent.settings.largest, agent.settings.plain_staging);
    let shown = path.display().to_string();
    let (archive, writer) =
        Archive::create(path, plain).map_err(|error| unwritten(&shown, &error))?;
    let (to, pieces) = mpsc::channel(AHEAD);
    let writing = move || write_all(writer, pieces, largest, &room, &shown);
    let writing = tokio::task::spawn_blocking(writing);
    form.archive(to).await?;
    let layer = writing.await.map_err(|_| ending())??;
    if form.digest().await? != layer.digest {
        let why = "the archive was damaged on its way: its digest is another";
        return Err(No::passing(StatusCode::UNPROCESSABLE_ENTITY, why));
    }
    Ok((archive, layer))
}

fn write_all(
    mut writer: Writer,
    mut pieces: mpsc::Receiver<Bytes>,
    largest: u64,
    room: &Room,
    path: &str,
) -> Result<Blob, No> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(piece) = pieces.blocking_recv() {
        size += piece.len() as u64;
        if size > largest {
            let why = format!("the archive has more than {largest} bytes; raise --largest-archive");
            return Err(No::refused(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        hash.update(&piece);
        writer.write(&piece).map_err(|error| unwritten(path, &error))?;
        room.written(piece.len() as u64);
    }
    writer.end().map_err(|error| unwritten(path, &error))?;
    Ok(Blob { digest: format!("sha256:{:x}", hash.finalize()), size })
}

fn unwritten(path: &str, error: &std::io::Error) -> No {
    No::passing(StatusCode::INSUFFICIENT_STORAGE, format!("write {path}: {error}"))
}

/// Its turn among those that come in.
async fn turn(agent: &Agent, wait: std::time::Duration) -> Result<SemaphorePermit<'_>, No> {
    let busy = || busy("too many checkpoints come in already");
    if let Ok(place) = agent.incoming.try_acquire() {
        return Ok(place);
    }
    let _waits = agent.queue.try_acquire().map_err(|_| busy())?;
    let place = tokio::time::timeout(wait, agent.incoming.acquire()).await;
    place.map_err(|_| busy())?.map_err(|_| busy())
}

fn busy(why: &str) -> No {
    No::passing(StatusCode::SERVICE_UNAVAILABLE, why)
}
