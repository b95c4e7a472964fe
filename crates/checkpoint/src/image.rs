//! The checkpoint image: one uncompressed layer that is the archive, byte for byte.
//!
//! CRI-O 1.36 takes an image for a checkpoint when its manifest has the annotation
//! `io.kubernetes.cri-o.annotations.checkpoint.name` (`server/container_restore.go`,
//! `checkIfCheckpointOCIImage`); containerd 2.1 to 2.3 look for
//! `org.criu.checkpoint.container.name`. Both are on manifest and index.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::archive::{self, Facts};
use crate::reference::ImageRef;
use crate::registry::{Blob, Client};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive is no good.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] crate::registry::Error),
    /// A task was cancelled.
    #[error("read the archive: the program is ending")]
    Cancelled,
}

/// A pushed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushReport {
    /// The image by digest.
    pub image: ImageRef,
    /// Size of the layer in bytes.
    pub bytes: u64,
    /// What the archive says of itself.
    pub facts: Facts,
}

/// Pushes the archive at `path` as the checkpoint of `container` to `to`, whose tag then names it.
pub async fn push_checkpoint(
    client: &Client,
    path: &Path,
    to: &ImageRef,
    container: &str,
) -> Result<PushReport, Error> {
    let archive: PathBuf = path.to_owned();
    let facts = tokio::task::spawn_blocking(move || archive::facts(&archive))
        .await
        .map_err(|_| Error::Cancelled)??;
    let layer = client.put_file(&to.repository, path).await?;
    let annotations = annotations(container, &facts);
    let digest = push_image(client, to, &json!({}), &[layer.clone()], &annotations).await?;
    Ok(PushReport { image: to.at(&digest), bytes: layer.size, facts })
}

/// Pushes config, manifest and index of an image whose layers are there, and gives its digest.
pub async fn push_image(
    client: &Client,
    to: &ImageRef,
    config: &Value,
    layers: &[Blob],
    annotations: &Value,
) -> Result<String, Error> {
    let repository = &to.repository;
    let platform = json!({ "architecture": architecture(), "os": "linux" });
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>(),
        },
    });
    let config = client.put_blob(repository, bytes(&config)).await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        "annotations": annotations,
    });
    let content = bytes(&manifest);
    let digest = crate::registry::digest(&content);
    let manifest = client.put_manifest(repository, &digest, MANIFEST, content).await?;
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["platform"] = platform;
    entry["annotations"] = annotations.clone();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [entry],
        "annotations": annotations,
    });
    let content = bytes(&index);
    let digest = crate::registry::digest(&content);
    let reference = to.tag.clone().unwrap_or_else(|| digest.clone());
    client.put_manifest(repository, &reference, INDEX, content).await?;
    Ok(digest)
}

fn bytes(document: &Value) -> Bytes {
    Bytes::from(document.to_string())
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

fn annotations(container: &str, facts: &Facts) -> Value {
    let mut annotations = json!({
        "io.kubernetes.cri-o.annotations.checkpoint.name": container,
        "org.criu.checkpoint.container.name": container,
        "org.criu.checkpoint.host.arch": architecture(),
    });
    for (name, value) in [
        ("org.criu.checkpoint.rootfsImageName", &facts.image),
        ("org.criu.checkpoint.runtime.name", &facts.runtime),
        ("org.criu.checkpoint.host.kernel", &kernel()),
    ] {
        if !value.is_empty() {
            annotations[name] = json!(value);
        }
    }
    annotations
}

/// The kernel's release; the transfer runs on the node that took the checkpoint.
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
