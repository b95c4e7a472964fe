//! What the operator orders. An order that is given again while it is carried out is not carried out
//! twice, and one that is given again later moves only what is not there.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use backon::{ExponentialBuilder, Retryable as _};
use serde_json::{Value, json};
use shadow_checkpoint::agent::wire::{
    Arrived, Expected, ForgetOrder, LoadOrder, Origin, PushOrder, SendOrder,
};
use shadow_checkpoint::agent::{self as other, Agent as Other};
use shadow_checkpoint::archive::{self, Facts};
use shadow_checkpoint::registry::{Blob, blob_of_file};
use shadow_checkpoint::{Client, Credentials, ImageRef, image, kubelet_archives, push_checkpoint};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::Agent;
use crate::answer::{No, chain};
use crate::asked::{Order, must_be_name};
use crate::staging::Archive;
use crate::store::{Entrance, Offer, Outcome, remove};

/// Attempts after the first, and the pause before the first of them; it doubles: half a minute in all.
const RETRIES: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

type Answered = Result<Json<Arrived>, No>;

/// `PUT /transfers/{transfer}`
pub(crate) async fn expect(
    State(agent): State<Arc<Agent>>,
    Path(transfer): Path<String>,
    Order(expected): Order<Expected>,
) -> Result<Json<Value>, No> {
    must_be_name(&transfer)?;
    agent.store.expect(&transfer, expected);
    Ok(Json(json!({})))
}

/// `POST /send`
pub(crate) async fn send(
    State(agent): State<Arc<Agent>>,
    Order(order): Order<SendOrder>,
) -> Answered {
    must_be_name(&order.transfer)?;
    let file = archive_of(&agent, &order.tar_path, &order.origin)?;
    // A fresh token for the same does not make it another.
    let name = format!("send {} {}", order.tar_path, order.agent);
    let transfer = order.transfer.clone();
    let (folder, outgoing) = (agent.settings.tls.clone(), agent.outgoing.clone());
    carry_out(&agent, &transfer, &name, |_| async move {
        let _turn = outgoing.acquire().await;
        let authorities = std::fs::read(folder.join("ca.crt")).map_err(|error| {
            No::passing(StatusCode::INTERNAL_SERVER_ERROR, format!("read ca.crt: {error}"))
        })?;
        let to = Other::new(&order.agent, &authorities, &order.token).map_err(|e| failed(&e))?;
        let upload = || to.upload(&order.transfer, &file, &order.origin.container);
        upload
            .retry(pauses())
            .when(other::Error::is_passing)
            .notify(|error, pause| tracing::warn!(%error, ?pause, "trying again"))
            .await
            .map_err(|error| failed(&error))
    })
    .await
}

/// `POST /registry-push`
pub(crate) async fn registry_push(
    State(agent): State<Arc<Agent>>,
    Order(order): Order<PushOrder>,
) -> Answered {
    must_be_name(&order.transfer)?;
    let file = archive_of(&agent, &order.tar_path, &order.origin)?;
    let to: Result<ImageRef, _> = order.image_ref.parse();
    let to = to.map_err(|error| No::refused(StatusCode::BAD_REQUEST, error.to_string()))?;
    let name = format!("push {} {to}", order.tar_path);
    let transfer = order.transfer.clone();
    let outgoing = agent.outgoing.clone();
    carry_out(&agent, &transfer, &name, |_| async move {
        let _turn = outgoing.acquire().await;
        let begun = Instant::now();
        let archive = file.clone();
        facts_of(&order.origin, move || archive::facts(&archive)).await?;
        let push = async || -> Result<_, image::Error> {
            let credentials = match &order.docker_config {
                Some(config) => Credentials::from_docker_config(config, &to.host)?,
                None => None,
            };
            let client = Client::connect(&to.host, credentials, false).await?;
            push_checkpoint(&client, &file, &to, &order.origin.container).await
        };
        let pushed = push.retry(pauses()).when(image::Error::is_passing).await;
        let report = pushed.map_err(|error| No::refused(StatusCode::BAD_GATEWAY, chain(&error)))?;
        Ok(report.arrived(begun.elapsed().as_secs_f64()))
    })
    .await
}

/// `POST /local-load`: the archive is offered where it is.
pub(crate) async fn local_load(
    State(agent): State<Arc<Agent>>,
    Order(order): Order<LoadOrder>,
) -> Answered {
    must_be_name(&order.transfer)?;
    let LoadOrder { transfer, tar_path, origin } = order;
    let file = archive_of(&agent, &tar_path, &origin)?;
    if let Some(offer) = agent.store.offered(&transfer)
        && offer.archive.path() == file
    {
        return Ok(Json(offer.arrived.clone()));
    }
    let (name, key) = (format!("load {tar_path}"), transfer.clone());
    let asked = agent.clone();
    carry_out(&asked, &key, &name, |entrance| async move {
        let begun = Instant::now();
        let archive = file.clone();
        let layer = tokio::task::spawn_blocking(move || blob_of_file(&archive)).await;
        let layer = layer
            .unwrap_or_else(|_| Err(std::io::ErrorKind::Interrupted.into()))
            .map_err(|error| no_archive(&file, &error.to_string()))?;
        let place = place(&agent, &transfer);
        let archive = Arc::new(Archive::of_kubelet(file));
        let offer = offer_of(archive, layer, &origin, &place, begun).await?;
        let arrived = offer.arrived.clone();
        agent.store.offer(&transfer, offer, &entrance).ok_or_else(|| given_up(&transfer))?;
        Ok(arrived)
    })
    .await
}

/// `POST /forget`
pub(crate) async fn forget(
    State(agent): State<Arc<Agent>>,
    Order(order): Order<ForgetOrder>,
) -> Result<Json<Value>, No> {
    must_be_name(&order.transfer)?;
    agent.store.forget(&order.transfer);
    let removal = tokio::task::spawn_blocking(move || {
        let folder = &agent.settings.checkpoints;
        let archives = kubelet_archives::since(folder, &order.origin, order.since);
        for archive in archives.iter().filter(|archive| may_go(archive, &order.origin)) {
            remove(archive);
        }
    });
    removal.await.map_err(|_| ending())?;
    Ok(Json(json!({})))
}

/// Of two containers whose archives are named alike, as `b-c` in namespace `a` and `c` in namespace
/// `a-b`, an archive says which one it is of. One that says nothing is of an attempt that failed.
fn may_go(archive: &FilePath, origin: &Origin) -> bool {
    archive.symlink_metadata().is_ok_and(|found| found.is_file())
        && archive::facts(archive).map_or(true, |facts| is_of(&facts, origin).is_ok())
}

fn pauses() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(PAUSE).with_max_times(RETRIES)
}

pub(crate) fn ending() -> No {
    No::passing(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending")
}

pub(crate) fn given_up(transfer: &str) -> No {
    No::refused(StatusCode::GONE, format!("transfer {transfer} was given up meanwhile"))
}

fn failed(error: &other::Error) -> No {
    No::refused(StatusCode::BAD_GATEWAY, chain(error))
}

fn no_archive(file: &FilePath, why: &str) -> No {
    No::refused(StatusCode::NOT_FOUND, format!("read checkpoint archive {}: {why}", file.display()))
}

/// Runs `work` beside the request: who asks again finds what came of it.
async fn carry_out<W: Future<Output = Result<Arrived, No>> + Send + 'static>(
    agent: &Agent,
    transfer: &str,
    order: &str,
    work: impl FnOnce(Entrance) -> W,
) -> Answered {
    let begin = |entrance| -> (AbortHandle, Outcome) {
        let (done, outcome) = watch::channel(None);
        let work = work(entrance);
        let task = tokio::spawn(async move {
            let _ = done.send(Some(work.await));
        });
        (task.abort_handle(), outcome)
    };
    let mut outcome = agent.store.task(transfer, order, begin);
    let found = outcome.wait_for(Option::is_some).await.map_err(|_| given_up(transfer))?;
    found.clone().ok_or_else(|| given_up(transfer))?.map(Json)
}

/// The archive that an order names: a file in the kubelet's folder, itself and no link, of that very
/// container.
fn archive_of(agent: &Agent, path: &str, origin: &Origin) -> Result<PathBuf, No> {
    let folder = &agent.settings.checkpoints;
    let said = FilePath::new(path);
    let refused = |why: &str| {
        let why = format!("{why}; archives are in {}", kubelet_archives::FOLDER);
        No::refused(StatusCode::FORBIDDEN, why)
    };
    let inside = said.parent() == Some(FilePath::new(kubelet_archives::FOLDER))
        || said.parent() == Some(folder);
    let name = said.file_name().filter(|_| inside).ok_or_else(|| refused("no such archive"))?;
    if !kubelet_archives::is_of(FilePath::new(name), origin) {
        return Err(refused("the archive is of another container"));
    }
    let file = folder.join(name);
    let found =
        std::fs::symlink_metadata(&file).map_err(|error| no_archive(&file, &error.to_string()))?;
    if !found.is_file() {
        return Err(refused("the archive is no regular file"));
    }
    Ok(file)
}

/// Where the node's runtime finds what a transfer offers.
pub(crate) fn place(agent: &Agent, transfer: &str) -> String {
    format!("{}/ms2m/{transfer}", agent.settings.registry_name)
}

/// The image at `place` around an archive, if that is of `origin`.
pub(crate) async fn offer_of(
    archive: Arc<Archive>,
    layer: Blob,
    origin: &Origin,
    place: &str,
    begun: Instant,
) -> Result<Offer, No> {
    let size = layer.size;
    let (archive, read) = (archive.clone(), archive);
    let facts = facts_of(origin, move || read.facts(size)).await?;
    let documents = image::documents(&origin.container, &facts, &layer);
    let digest = documents.digest();
    let arrived = Arrived {
        image: format!("{place}@{digest}"),
        digest,
        bytes: layer.size,
        base_image: facts.base_image().to_owned(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    Ok(Offer { archive, layer, documents, arrived })
}

/// What is known of an archive, if that is of `origin`; `read` may block.
async fn facts_of(
    origin: &Origin,
    read: impl FnOnce() -> Result<Facts, archive::Error> + Send + 'static,
) -> Result<Facts, No> {
    let unusable = |why: String| No::refused(StatusCode::UNPROCESSABLE_ENTITY, why);
    let facts = tokio::task::spawn_blocking(read).await.map_err(|_| ending())?;
    let facts = facts.map_err(|error| unusable(chain(&error)))?;
    is_of(&facts, origin).map_err(unusable)?;
    Ok(facts)
}

/// What an archive says of itself; words that it does not say are no reason to refuse it.
fn is_of(facts: &Facts, origin: &Origin) -> Result<(), String> {
    for (said, wanted) in [(&facts.namespace, &origin.namespace), (&facts.pod, &origin.pod)] {
        if !said.is_empty() && said != wanted {
            let Origin { namespace, pod, .. } = origin;
            return Err(format!("the archive is of another pod than {namespace}/{pod}"));
        }
    }
    Ok(())
}
