//! What a checkpoint archive says of itself.
//!
//! The archive is untrusted: it is a process's memory and whatever that process wrote. Its headers are
//! walked with limits ([`crate::headers`]), three small files are read, and what they say is taken for
//! words, never for paths or sizes.
//!
//! | file | read for | |
//! |---|---|---|
//! | `config.dump` | image, runtime, time | required: CRI-O restores nothing without it |
//! | `spec.dump` | pod, engine, digest of the image | required, likewise |
//! | `dump.log` | versions of CRIU and kernel | its first lines, if it is there |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::headers::{Headers, Stop};

/// The metadata files are some kilobytes.
const LARGEST_METADATA: u64 = 4 << 20;
/// CRIU names itself and its host in its first lines.
const LOG_BEGINNING: u64 = 4 << 10;
/// Longer words are not what they should be.
const LONGEST_WORD: usize = 512;

/// Why an archive can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("read checkpoint archive {archive}")]
    Read {
        /// Its path.
        archive: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is no checkpoint, or no whole one.
    #[error("checkpoint archive {archive} {why}")]
    Refused {
        /// Its path.
        archive: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What is known of a checkpoint. A word that is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The image of the root file system, as the runtime names it.
    pub image: String,
    /// The same by digest, `name@sha256:…`.
    pub image_by_digest: String,
    /// The same as it was asked for.
    pub image_requested: String,
    /// The runtime's id of that image.
    pub image_id: String,
    /// OCI runtime, as `crun`.
    pub runtime: String,
    /// Container engine, as `cri-o`.
    pub engine: String,
    /// Pod that ran it.
    pub pod: String,
    /// Namespace of that pod.
    pub namespace: String,
    /// UID of that pod.
    pub pod_uid: String,
    /// When it was taken, as the runtime writes it.
    pub taken_at: String,
    /// Version of CRIU.
    pub criu: String,
    /// Release of the kernel.
    pub kernel: String,
}

impl Facts {
    /// The image that a restore needs on its node: by digest if that is known.
    pub fn base_image(&self) -> &str {
        [&self.image_by_digest, &self.image, &self.image_requested]
            .into_iter()
            .find(|name| !name.is_empty())
            .map_or("", String::as_str)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigDump {
    rootfs_image: String,
    rootfs_image_ref: String,
    rootfs_image_name: String,
    runtime: String,
    checkpointed_time: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SpecDump {
    annotations: BTreeMap<String, String>,
}

/// Reads the facts of the archive at `path`. Blocking; contents are skipped.
pub fn facts(path: &Path) -> Result<Facts, Error> {
    let archive = || path.display().to_string();
    let read = |source| Error::Read { archive: archive(), source };
    let file = File::open(path).map_err(read)?;
    // Anything else might never end.
    if !file.metadata().map_err(read)?.is_file() {
        return Err(Error::Refused { archive: archive(), why: "is not a regular file" });
    }
    facts_of(&archive(), file)
}

/// The same, of an archive that errors call `name`.
pub fn facts_of(name: &str, archive: impl Read + Seek) -> Result<Facts, Error> {
    gather(archive).map_err(|stop| match stop {
        Stop::Io(source) => Error::Read { archive: name.to_owned(), source },
        Stop::Refused(why) => Error::Refused { archive: name.to_owned(), why },
    })
}

fn gather(archive: impl Read + Seek) -> Result<Facts, Stop> {
    let mut headers = Headers::new(archive)?;
    let (mut config, mut spec, mut log) = (None, None, Vec::new());
    while let Some(entry) = headers.next()? {
        match entry.name.as_slice() {
            b"config.dump" | b"spec.dump" if entry.size > LARGEST_METADATA => {
                return Err(Stop::Refused("has a config.dump or spec.dump that is too large"));
            }
            b"config.dump" => {
                let text = headers.beginning(&entry, LARGEST_METADATA)?;
                once(&mut config, json::<ConfigDump>(&text, "has a config.dump that is no JSON")?)?;
            }
            b"spec.dump" => {
                let text = headers.beginning(&entry, LARGEST_METADATA)?;
                once(&mut spec, json::<SpecDump>(&text, "has a spec.dump that is no JSON")?)?;
            }
            b"dump.log" => log = headers.beginning(&entry, LOG_BEGINNING)?,
            _ => {}
        }
    }
    let config = config.ok_or(Stop::Refused("is no checkpoint: it has no config.dump"))?;
    let spec = spec.ok_or(Stop::Refused("is no checkpoint: it has no spec.dump"))?;
    Ok(put_together(&config, &spec, &String::from_utf8_lossy(&log)))
}

/// Unpacking takes the last of two, we would take one of them: such an archive is refused.
fn once<T>(place: &mut Option<T>, found: T) -> Result<(), Stop> {
    match place.replace(found) {
        Some(_) => Err(Stop::Refused("has its config.dump or spec.dump twice")),
        None => Ok(()),
    }
}

fn json<T: DeserializeOwned>(text: &[u8], why: &'static str) -> Result<T, Stop> {
    serde_json::from_slice(text).map_err(|_| Stop::Refused(why))
}

fn put_together(config: &ConfigDump, spec: &SpecDump, log: &str) -> Facts {
    let said = |name: &str| word(spec.annotations.get(name).map_or("", String::as_str));
    let digests = spec.annotations.get("io.kubernetes.cri-o.ImageRepoDigests");
    let by_digest = digests.and_then(|digests| digests.split([',', ' ']).next()).unwrap_or("");
    let logged = |before: &str, end: &str| {
        let mut lines = log.lines().filter_map(|line| line.split_once(before));
        lines.next().and_then(|(_, rest)| rest.split(end).next()).map_or_else(String::new, word)
    };
    // "Running on <node> Linux <release> …"
    let host = logged("Running on ", "#");
    Facts {
        image: word(&config.rootfs_image_name),
        image_by_digest: word(by_digest),
        image_requested: word(&config.rootfs_image),
        image_id: word(&config.rootfs_image_ref),
        runtime: word(&config.runtime),
        taken_at: word(&config.checkpointed_time),
        engine: said("io.container.manager"),
        pod: said("io.kubernetes.pod.name"),
        namespace: said("io.kubernetes.pod.namespace"),
        pod_uid: said("io.kubernetes.pod.uid"),
        criu: logged(" Version: ", " "),
        kernel: host.split(' ').nth(2).unwrap_or("").to_owned(),
    }
}

/// The text, if it can be one word of an annotation or a report.
fn word(text: &str) -> String {
    let text = text.trim();
    if text.len() > LONGEST_WORD || text.chars().any(char::is_control) {
        return String::new();
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &[u8] =
        br#"{"name":"k8s_app_consumer-0","rootfsImage":"r/app:1","runtime":"crun",
        "rootfsImageRef":"b65ead27","rootfsImageName":"r/app:1","unknown":1,
        "checkpointedTime":"2026-01-02T03:04:05Z","restored":false}"#;
    const SPEC: &[u8] = br#"{"ociVersion":"1.2.0","annotations":{
        "io.container.manager":"cri-o","io.kubernetes.pod.name":"consumer-0",
        "io.kubernetes.cri-o.ImageRepoDigests":"r/app@sha256:11,r/app@sha256:22"}}"#;
    const LOG: &[u8] = b"(00.000000) CRIU run id = f26c\n(00.000019) Version: 4.1.1 (gitid 0)\n\
        (00.000022) Running on worker-1 Linux 6.18.44 #1 SMP x86_64\n";

    fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.reopen().unwrap());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.finish().unwrap();
        file
    }

    fn refusal(entries: &[(&str, &[u8])]) -> String {
        facts(archive(entries).path()).unwrap_err().to_string()
    }

    #[test]
    fn the_facts_are_found_among_other_entries() {
        let file = archive(&[
            ("dump.log", LOG),
            ("checkpoint/pages-1.img", &[1; 5000]),
            ("./config.dump", CONFIG),
            ("spec.dump", SPEC),
        ]);
        let facts = facts(file.path()).unwrap();
        assert_eq!(facts.base_image(), "r/app@sha256:11");
        assert_eq!((facts.criu.as_str(), facts.kernel.as_str()), ("4.1.1", "6.18.44"));
        assert_eq!((facts.pod.as_str(), facts.engine.as_str()), ("consumer-0", "cri-o"));
        assert_eq!((facts.image_id.as_str(), facts.runtime.as_str()), ("b65ead27", "crun"));
        assert_eq!(facts.taken_at, "2026-01-02T03:04:05Z");
    }

    #[test]
    fn what_is_not_said_is_empty() {
        let facts = facts(archive(&[("config.dump", b"{}"), ("spec.dump", b"{}")]).path()).unwrap();
        assert_eq!(facts, Facts::default());
        assert_eq!(facts.base_image(), "");
    }

    #[test]
    fn an_archive_that_is_cut_short_is_refused_by_name() {
        let file = archive(&[
            ("config.dump", CONFIG),
            ("spec.dump", SPEC),
            ("checkpoint/pages-1.img", &vec![1; 50_000]),
        ]);
        file.as_file().set_len(20_000).unwrap();
        let error = facts(file.path()).unwrap_err().to_string();
        assert!(error.contains("cut short"), "{error}");
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        assert!(refusal(&[("a", b"b")]).contains("no config.dump"));
        assert!(refusal(&[("config.dump", CONFIG)]).contains("no spec.dump"));
        assert!(refusal(&[("config.dump", b"not json")]).contains("no JSON"));
        let twice = [("config.dump", CONFIG), ("spec.dump", SPEC), ("config.dump", CONFIG)];
        assert!(refusal(&twice).contains("twice"));
        let large = vec![b' '; (4 << 20) + 1];
        assert!(refusal(&[("spec.dump", &large)]).contains("too large"));
        let folder = tempfile::tempdir().unwrap();
        assert!(facts(folder.path()).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn a_word_that_could_break_a_line_is_dropped() {
        let config = br#"{"runtime":"crun\n\"forged\"","rootfsImageName":"r/app:1"}"#;
        let facts = facts(archive(&[("config.dump", config), ("spec.dump", SPEC)]).path()).unwrap();
        assert_eq!((facts.runtime.as_str(), facts.image.as_str()), ("", "r/app:1"));
    }
}
