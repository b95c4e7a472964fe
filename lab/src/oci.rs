//! The smallest image there is: one static program, as an OCI layout.

use std::{fs, path::Path};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error::{Context, Result};

/// Writes an OCI layout to `layout` whose image holds `program` at `target` and runs it.
pub(crate) fn write_image(layout: &Path, program: &Path, target: &str) -> Result<()> {
    let layer = layer(program, target)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let layer_digest = digest(&layer);
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": [target] },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())],
    })
    .to_string();
    for blob in [&layer, config.as_bytes(), manifest.as_bytes()] {
        write(&layout.join("blobs/sha256").join(digest(blob).trim_start_matches("sha256:")), blob)?;
    }
    write(&layout.join("index.json"), index.as_bytes())?;
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn layer(program: &Path, target: &str) -> Result<Vec<u8>> {
    let content = fs::read(program).context(|| format!("read {}", program.display()))?;
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_data(&mut header, target.trim_start_matches('/'), content.as_slice())
        .and_then(|()| archive.into_inner())
        .context(|| format!("pack {}", program.display()))
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    }
    fs::write(path, bytes).context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_in_the_layout_leads_to_its_blob() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "not really a program").unwrap();
        write_image(folder.path(), &program, "/pause").unwrap();

        let read = |reference: &serde_json::Value| {
            let digest = reference["digest"].as_str().unwrap().trim_start_matches("sha256:");
            let blob = fs::read(folder.path().join("blobs/sha256").join(digest)).unwrap();
            assert_eq!(blob.len() as u64, reference["size"].as_u64().unwrap());
            blob
        };
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_slice(&read(&index["manifests"][0])).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/pause");
        let layer = read(&manifest["layers"][0]);
        let mut archive = tar::Archive::new(layer.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("pause"));
    }
}
