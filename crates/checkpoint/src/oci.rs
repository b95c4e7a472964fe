//! OCI images from layers that are there: the documents, and where they go (a registry, or a folder in
//! OCI image layout).
//!
//! The documents are written with sorted keys, so that the same image has the same digest. (The types of
//! `oci-spec` keep annotations in hash maps, whose order changes from run to run.)

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::reference::ImageRef;
use crate::registry::{Blob, Client, blob_of_file, digest};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image's documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The image's configuration.
    pub config: Bytes,
    /// Its manifest.
    pub manifest: Bytes,
    /// The index with this one manifest. The image is referred to by its digest.
    pub index: Bytes,
}

impl Documents {
    /// Describes an image for this machine's architecture: `config` is what the configuration's
    /// `config` member holds; the uncompressed `layers` are in order. Annotations go onto the manifest,
    /// onto the index and onto its descriptor of the manifest.
    pub fn new(config: &Value, layers: &[Blob], annotations: &Value) -> Self {
        let platform = json!({ "architecture": architecture(), "os": "linux" });
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = bytes(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }));
        let layers: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let manifest = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &blob(&config)),
            "layers": layers,
            "annotations": annotations,
        }));
        let mut entry = descriptor(MANIFEST, &blob(&manifest));
        entry["platform"] = platform;
        entry["annotations"] = annotations.clone();
        let index = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [entry],
            "annotations": annotations,
        }));
        Self { config, manifest, index }
    }

    /// The image's digest.
    pub fn digest(&self) -> String {
        digest(&self.index)
    }
}

/// Pushes an image whose layers are in the repository already; its name by digest. The tag of `to`
/// comes last, so that it never names half an image.
pub async fn push_documents(
    client: &Client,
    to: &ImageRef,
    image: &Documents,
) -> Result<ImageRef, crate::registry::Error> {
    let repository = &to.repository;
    client.ensure_blob(repository, &image.config).await?;
    client.put_manifest(repository, None, MANIFEST, &image.manifest).await?;
    client.put_manifest(repository, to.tag.as_deref(), INDEX, &image.index).await?;
    Ok(to.at(&image.digest()))
}

/// Pushes an image from its layer files. What is there already is not sent.
pub async fn push_image(
    client: &Client,
    to: &ImageRef,
    config: &Value,
    layers: &[impl AsRef<Path>],
) -> Result<ImageRef, crate::registry::Error> {
    let mut blobs = Vec::new();
    for layer in layers {
        blobs.push(client.ensure_file(&to.repository, layer.as_ref()).await?);
    }
    push_documents(client, to, &Documents::new(config, &blobs, &json!({}))).await
}

/// Writes an image as an OCI image layout into `folder`, as `skopeo copy oci:folder:tag` reads it.
/// Blocking.
pub fn write_layout(
    folder: &Path,
    tag: &str,
    config: &Value,
    layers: &[impl AsRef<Path>],
) -> io::Result<String> {
    let store = folder.join("blobs/sha256");
    fs::create_dir_all(&store)?;
    let place = |digest: &str| store.join(digest.trim_start_matches("sha256:"));
    let mut blobs = Vec::new();
    for layer in layers {
        let blob = blob_of_file(layer.as_ref())?;
        fs::copy(layer, place(&blob.digest))?;
        blobs.push(blob);
    }
    let image = Documents::new(config, &blobs, &json!({}));
    for document in [&image.config, &image.manifest, &image.index] {
        fs::write(place(&digest(document)), document)?;
    }
    let mut entry = descriptor(INDEX, &blob(&image.index));
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let top = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    fs::write(folder.join("index.json"), top.to_string())?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(image.digest())
}

/// This machine's architecture, as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn bytes(document: &Value) -> Bytes {
    Bytes::from(document.to_string())
}

fn blob(document: &Bytes) -> Blob {
    Blob { digest: digest(document), size: document.len() as u64 }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: &[u8]) -> Value {
        serde_json::from_slice(document).unwrap()
    }

    #[test]
    fn documents_refer_to_each_other_and_carry_the_annotations() {
        let layer = Blob { digest: digest(b"layer"), size: 5 };
        let said = json!({ "b": "2", "a": "1" });
        let image = Documents::new(&json!({ "User": "1" }), std::slice::from_ref(&layer), &said);
        let (config, manifest, index) =
            (read(&image.config), read(&image.manifest), read(&image.index));
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.digest);
        assert_eq!(manifest["layers"][0]["digest"], layer.digest);
        assert_eq!(manifest["config"]["digest"], digest(&image.config));
        assert_eq!(index["manifests"][0]["digest"], digest(&image.manifest));
        assert_eq!(index["manifests"][0]["size"], image.manifest.len());
        assert_eq!(index["manifests"][0]["platform"]["os"], "linux");
        for annotated in [&manifest, &index, &index["manifests"][0]] {
            assert_eq!(annotated["annotations"], said);
        }
        assert_eq!(image, Documents::new(&json!({ "User": "1" }), &[layer], &said));
    }

    #[test]
    fn every_reference_in_a_layout_leads_to_its_blob() {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer.tar");
        fs::write(&layer, b"layer").unwrap();
        let layout = folder.path().join("layout");
        let top = write_layout(&layout, "dev", &json!({}), &[&layer]).unwrap();

        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:");
            let blob = fs::read(layout.join("blobs/sha256").join(digest)).unwrap();
            assert_eq!(blob.len() as u64, descriptor["size"].as_u64().unwrap());
            assert_eq!(super::digest(&blob), format!("sha256:{digest}"));
            blob
        };
        let entry = read(&fs::read(layout.join("index.json")).unwrap())["manifests"][0].clone();
        assert_eq!((&entry["digest"], entry["mediaType"].as_str()), (&json!(top), Some(INDEX)));
        let manifest = read(&follow(&read(&follow(&entry))["manifests"][0]));
        follow(&manifest["config"]);
        assert_eq!(follow(&manifest["layers"][0]), b"layer");
    }
}
