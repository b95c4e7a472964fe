//! What a checkpoint archive says of itself. The archive is untrusted: it is a process's memory and
//! whatever that process wrote. Nothing is unpacked; entry count, names and sizes are limited.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

/// More entries than any container's changed files make.
const MOST_ENTRIES: usize = 1_000_000;
/// The metadata files are a few kilobytes.
const LARGEST_METADATA: u64 = 4 << 20;

/// Why an archive can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read, or is cut short.
    #[error("read checkpoint archive {archive}: it is not a whole tar archive")]
    Read {
        /// Its path.
        archive: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is no checkpoint.
    #[error("checkpoint archive {archive}: {why}")]
    NotACheckpoint {
        /// Its path.
        archive: String,
        /// What is missing or too much.
        why: &'static str,
    },
}

/// What `config.dump` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Facts {
    /// Name of the container, as the runtime knows it.
    pub name: String,
    /// Image of the root file system.
    #[serde(rename = "rootfsImageName")]
    pub image: String,
    /// The image that the pod's spec named.
    #[serde(rename = "rootfsImage")]
    pub image_requested: String,
    /// Runtime that ran it.
    #[serde(rename = "runtime")]
    pub runtime: String,
}

/// Reads the facts of the archive at `path`. Blocking: seeks over the tar once, without reading the
/// contents.
pub fn facts(path: &Path) -> Result<Facts, Error> {
    let archive = path.display().to_string();
    let read = |source| Error::Read { archive: archive.clone(), source };
    let no = |why| Error::NotACheckpoint { archive: archive.clone(), why };
    let file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let mut tar = tar::Archive::new(file);
    let mut facts = None;
    for (count, entry) in tar.entries_with_seek().map_err(read)?.enumerate() {
        if count >= MOST_ENTRIES {
            return Err(no("it has too many entries"));
        }
        let mut entry = entry.map_err(read)?;
        let size = entry.header().size().map_err(read)?;
        if entry.raw_file_position().saturating_add(size) > length {
            return Err(no("it is cut short"));
        }
        let is_config = {
            let name = entry.path_bytes();
            let name = name.strip_prefix(b"./".as_slice()).unwrap_or(&name);
            name == b"config.dump"
        };
        if !is_config {
            continue;
        }
        if size > LARGEST_METADATA {
            return Err(no("its config.dump is too large"));
        }
        let mut text = Vec::new();
        entry.by_ref().take(LARGEST_METADATA).read_to_end(&mut text).map_err(read)?;
        facts = Some(serde_json::from_slice(&text).map_err(|_| no("its config.dump is not JSON"))?);
    }
    facts.ok_or_else(|| no("it has no config.dump"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.reopen().unwrap());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.finish().unwrap();
        file
    }

    #[test]
    fn the_facts_are_found_among_other_entries() {
        let config = br#"{"name":"app","rootfsImageName":"r/app:1","unknown":1}"#;
        let file = archive(&[("checkpoint/pages-1.img", &[1; 5000]), ("config.dump", config)]);
        let facts = facts(file.path()).unwrap();
        assert_eq!((facts.name.as_str(), facts.image.as_str()), ("app", "r/app:1"));
    }

    #[test]
    fn an_archive_that_is_cut_short_is_refused() {
        let file = archive(&[("config.dump", b"{}"), ("checkpoint/pages-1.img", &[1; 50_000])]);
        file.as_file().set_len(20_000).unwrap();
        assert!(facts(file.path()).is_err());
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        assert!(facts(archive(&[("a", b"b")]).path()).is_err());
        assert!(facts(archive(&[("config.dump", b"not json")]).path()).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 4096]).unwrap();
        assert!(facts(file.path()).is_err());
    }
}
