//! What the agent has taken in, as the node's runtime finds it: a registry that can only be read, by
//! digest.
//!
//! No layer is listed and no tag resolved: who reads has to know the digest, which the operator writes
//! into the pod that is to be restored.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::TryStreamExt as _;
use shadow_checkpoint::oci::{INDEX, MANIFEST};
use shadow_checkpoint::registry::digest;

use crate::Agent;
use crate::answer::No;

pub(crate) fn routes(agent: &Arc<Agent>) -> Router {
    Router::new()
        .route("/v2/", get(|| async { "{}" }))
        .route("/v2/ms2m/{transfer}/manifests/{digest}", get(manifest))
        .route("/v2/ms2m/{transfer}/blobs/{digest}", get(blob))
        .with_state(agent.clone())
}

type Place = Path<(String, String)>;

async fn manifest(State(agent): State<Arc<Agent>>, Path((transfer, wanted)): Place) -> Response {
    let Some(offer) = agent.store.offered(&transfer) else { return nothing(&wanted) };
    let documents = &offer.documents;
    for (document, kind) in [(&documents.index, INDEX), (&documents.manifest, MANIFEST)] {
        if digest(document) == wanted {
            return document_answer(document, kind, &wanted);
        }
    }
    nothing(&wanted)
}

async fn blob(
    State(agent): State<Arc<Agent>>,
    method: Method,
    Path((transfer, wanted)): Place,
) -> Response {
    let Some(offer) = agent.store.offered(&transfer) else { return nothing(&wanted) };
    if digest(&offer.documents.config) == wanted {
        return document_answer(&offer.documents.config, "application/octet-stream", &wanted);
    }
    if offer.layer.digest != wanted {
        return nothing(&wanted);
    }
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let (archive, size) = (offer.archive.clone(), offer.layer.size);
        let opened = tokio::task::spawn_blocking(move || archive.open(size)).await;
        match opened.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())) {
            Ok(reader) => Body::from_stream(reader.pieces().inspect_err(move |error| {
                // The runtime only sees that the answer breaks off.
                tracing::warn!(transfer, %error, "an archive can't be read any more");
            })),
            Err(error) => {
                let why = format!("read {}: {error}", offer.archive.path().display());
                return No::passing(StatusCode::INTERNAL_SERVER_ERROR, why).into_response();
            }
        }
    };
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, offer.layer.size.to_string()),
    ];
    (headers, [("docker-content-digest", wanted)], body).into_response()
}

fn document_answer(document: &Bytes, kind: &str, digest: &str) -> Response {
    let headers = [(CONTENT_TYPE, kind.to_owned())];
    (headers, [("docker-content-digest", digest.to_owned())], document.clone()).into_response()
}

fn nothing(wanted: &str) -> Response {
    let shown: String = wanted.chars().take(80).collect();
    No::refused(StatusCode::NOT_FOUND, format!("nothing with digest {shown} is offered here"))
        .into_response()
}
