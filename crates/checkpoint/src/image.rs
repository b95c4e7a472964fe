//! The checkpoint image: one uncompressed layer that is the archive, byte for byte.
//!
//! What runtimes read of it:
//!
//! - CRI-O 1.36.3 (`server/container_restore.go`) takes an image for a checkpoint if the *manifest* that
//!   it stored has the annotation `io.kubernetes.cri-o.annotations.checkpoint.name`
//!   (`checkIfCheckpointOCIImage`; `internal/storage/image.go` reads annotations of OCI manifests only,
//!   and not of an index); its value is only logged. It then mounts the image and reads `spec.dump`
//!   and `config.dump`: the base image is `rootfsImageRef` (an image id, which must be on the node), or
//!   else `rootfsImageName`. Every bind mount in `spec.dump` must be one of the new pod's. Of the other
//!   annotations it reads none. The index it only resolves, by platform.
//! - containerd 2.1 to 2.3 looks for `org.criu.checkpoint.container.name` on what the name refers to:
//!   the index.
//!
//! So everything is on manifest, index and the index's descriptor. The facts have the names that
//! checkpointctl's `lib/annotations.go` gives them. What the node's distribution is
//! (`org.criu.checkpoint.distribution.*`) can't be seen from a container, and is left out.

use std::path::Path;

use serde_json::{Value, json};

use crate::agent::wire::Arrived;
use crate::archive::{self, Facts};
use crate::oci::{Documents, architecture, push_documents};
use crate::reference::ImageRef;
use crate::registry::{Blob, Client};

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

impl Error {
    /// Whether another try may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_passing(),
            Self::Archive(_) | Self::Cancelled => false,
        }
    }
}

/// A pushed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushReport {
    /// The image by digest.
    pub image: ImageRef,
    /// Its digest, `sha256:…`.
    pub digest: String,
    /// Size of the layer in bytes.
    pub bytes: u64,
    /// What the archive says of itself.
    pub facts: Facts,
}

impl PushReport {
    /// In the words of operator, Job and agents.
    pub fn arrived(&self, seconds: f64) -> Arrived {
        Arrived {
            image: self.image.to_string(),
            digest: self.digest.clone(),
            bytes: self.bytes,
            base_image: self.facts.base_image().to_owned(),
            seconds,
        }
    }
}

/// Pushes the archive at `path` as the checkpoint of `container` to `to`, whose tag then names it.
///
/// The archive's contents are read once. Only if the tag is there already, as when a Job is run again
/// because its result got lost, is the archive hashed first: then it need not be sent again.
pub async fn push_checkpoint(
    client: &Client,
    path: &Path,
    to: &ImageRef,
    container: &str,
) -> Result<PushReport, Error> {
    let archive = path.to_owned();
    let facts = tokio::task::spawn_blocking(move || archive::facts(&archive))
        .await
        .map_err(|_| Error::Cancelled)??;
    let layer = if client.manifest_exists(to).await? {
        client.ensure_file(&to.repository, path).await?
    } else {
        client.upload_file(&to.repository, path).await?
    };
    let annotations = annotations(container, &facts, &Host::of_this_machine());
    let bytes = layer.size;
    let image =
        push_documents(client, to, &Documents::new(&json!({}), &[layer], &annotations)).await?;
    let digest = image.reference().to_owned();
    Ok(PushReport { image, digest, bytes, facts })
}

/// The documents of the image of an archive that was taken on another node. Its cgroup version is not
/// known here, and its kernel only if the archive says so.
pub fn documents(container: &str, facts: &Facts, layer: &Blob) -> Documents {
    let host = Host { kernel: String::new(), cgroup: "" };
    let annotations = annotations(container, facts, &host);
    Documents::new(&json!({}), std::slice::from_ref(layer), &annotations)
}

/// What the archive does not say. The transfer runs on the node that took the checkpoint.
struct Host {
    kernel: String,
    cgroup: &'static str,
}

impl Host {
    fn of_this_machine() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        Self { kernel, cgroup: cgroup_version(&read("/proc/self/cgroup")) }
    }
}

/// On a host with version 2 alone, a process is in one hierarchy, number 0.
fn cgroup_version(own: &str) -> &'static str {
    match own {
        "" => "",
        own if own.lines().all(|line| line.starts_with("0::")) => "v2",
        _ => "v1",
    }
}

fn annotations(container: &str, facts: &Facts, host: &Host) -> Value {
    let kernel = if facts.kernel.is_empty() { &host.kernel } else { &facts.kernel };
    let mut annotations = json!({
        "io.kubernetes.cri-o.annotations.checkpoint.name": container,
        "org.criu.checkpoint.container.name": container,
    });
    for (name, value) in [
        ("cgroup.version", host.cgroup),
        ("criu.version", &facts.criu),
        ("engine.name", &facts.engine),
        ("host.arch", architecture()),
        ("host.kernel", kernel),
        ("pod.id", &facts.pod_uid),
        ("pod.name", &facts.pod),
        ("pod.namespace", &facts.namespace),
        ("rootfsImageID", &facts.image_id),
        ("rootfsImageName", &facts.image),
        ("rootfsImageUserRequested", &facts.image_requested),
        ("runtime.name", &facts.runtime),
    ] {
        if !value.is_empty() {
            annotations[format!("org.criu.checkpoint.{name}")] = json!(value);
        }
    }
    if !facts.taken_at.is_empty() {
        annotations["org.opencontainers.image.created"] = json!(facts.taken_at);
    }
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runtimes_find_their_annotation_and_nothing_is_empty() {
        let facts = Facts { criu: "4.1.1".to_owned(), ..Facts::default() };
        let host = Host { kernel: "6.18".to_owned(), cgroup: "v1" };
        assert_eq!(
            annotations("app", &facts, &host),
            json!({
                "io.kubernetes.cri-o.annotations.checkpoint.name": "app",
                "org.criu.checkpoint.container.name": "app",
                "org.criu.checkpoint.cgroup.version": "v1",
                "org.criu.checkpoint.criu.version": "4.1.1",
                "org.criu.checkpoint.host.arch": architecture(),
                "org.criu.checkpoint.host.kernel": "6.18",
            })
        );
    }

    #[test]
    fn a_mixed_host_counts_as_version_1() {
        assert_eq!(cgroup_version("0::/a\n"), "v2");
        assert_eq!(cgroup_version("4:memory:/a\n0::/a\n"), "v1");
        assert_eq!(cgroup_version(""), "");
    }
}
