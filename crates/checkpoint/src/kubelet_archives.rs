//! The names of archives: which container they are of, and when they were begun.
//!
//! The kubelet writes `checkpoint-POD_NAMESPACE-CONTAINER-TIME.tar` (`CheckpointContainer` in its
//! `kubelet.go`) and tells the name only in its answer. The time is when the attempt began, by the
//! node's clock: only such times are compared with each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::agent::wire::Origin;

/// Where the kubelet puts them.
pub const FOLDER: &str = "/var/lib/kubelet/checkpoints";

/// What the archive is of, and when it was begun.
fn parts(archive: &Path) -> Option<(&str, Timestamp)> {
    let name = archive.file_name()?.to_str()?.strip_suffix(".tar")?;
    let mut dashes = name.match_indices('-');
    dashes.find_map(|(dash, _)| Some((&name[..dash], name[dash + 1..].parse().ok()?)))
}

/// The archives next to `archive` of the same container, begun up to `within` before it. Others are
/// somebody else's: of another container, or taken by hand.
pub fn before(archive: &Path, within: Duration) -> Vec<PathBuf> {
    // A bare name has no folder.
    let Ok(archive) = std::path::absolute(archive) else { return Vec::new() };
    let Some((of, begun)) = parts(&archive) else { return Vec::new() };
    let entries = archive.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let files = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let is_attempt = |file: &PathBuf| {
        parts(file).is_some_and(|(other, at)| {
            let earlier = Duration::try_from(begun.duration_since(at));
            other == of && *file != archive && earlier.is_ok_and(|earlier| earlier <= within)
        })
    };
    files.filter(is_attempt).collect()
}

/// Whether a file of this name is an archive of `origin`.
pub fn is_of(archive: &Path, origin: &Origin) -> bool {
    parts(archive).is_some_and(|(of, _)| of == beginning(origin))
}

/// The archives in `folder` of `origin` that were begun at `since`, in seconds since 1970, or later:
/// those of attempts whose answer was lost among them.
pub fn since(folder: &Path, origin: &Origin, since: i64) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of_it = |file: &PathBuf| {
        parts(file).is_some_and(|(of, at)| of == beginning(origin) && at.as_second() >= since)
    };
    entries.map(|entry| entry.path()).filter(of_it).collect()
}

fn beginning(origin: &Origin) -> String {
    format!("checkpoint-{}_{}-{}", origin.pod, origin.namespace, origin.container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_same_checkpoint_may_have_left_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let archive = at("checkpoint-consumer-0_shop-app-2026-11-23T08:02:00Z.tar");
        let lost = [
            "checkpoint-consumer-0_shop-app-2026-11-23T07:59:30Z.tar",
            // The node's clock was set to another zone meanwhile.
            "checkpoint-consumer-0_shop-app-2026-11-23T10:01:00+02:00.tar",
        ];
        let others = [
            "checkpoint-consumer-0_shop-app-2026-11-23T07:59:29Z.tar",
            "checkpoint-consumer-0_shop-app-2026-11-23T08:02:01Z.tar",
            "checkpoint-consumer-0_shop-app-2-2026-11-23T08:01:00Z.tar",
            "checkpoint-consumer-0_shop-proxy-2026-11-23T08:01:00Z.tar",
            "checkpoint-consumer-1_shop-app-2026-11-23T08:01:00Z.tar",
            "checkpoint-consumer-0_shop-app-2026-11-23T08:01:00Z.tar.part",
            "mine.tar",
        ];
        for name in lost.iter().chain(&others) {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::write(&archive, "").unwrap();
        let mut found = before(&archive, Duration::from_secs(150));
        found.sort();
        assert_eq!(found, lost.map(at));
        assert_eq!(before(&at("mine.tar"), Duration::MAX), Vec::<PathBuf>::new());
        let nowhere = Path::new("/nowhere/a-2026-11-23T08:02:00Z.tar");
        assert_eq!(before(nowhere, Duration::MAX), Vec::<PathBuf>::new());
    }

    #[test]
    fn archives_of_one_container_are_told_from_its_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin {
            namespace: "shop".to_owned(),
            pod: "consumer-0".to_owned(),
            container: "app".to_owned(),
        };
        let at = |name: &str| folder.path().join(name);
        let ours = at("checkpoint-consumer-0_shop-app-2026-11-23T08:02:00Z.tar");
        let others = [
            "checkpoint-consumer-0_shop-app-2026-11-23T08:01:59Z.tar",
            "checkpoint-consumer-0_shop-app-2-2026-11-23T08:02:00Z.tar",
            "checkpoint-consumer-00_shop-app-2026-11-23T08:02:00Z.tar",
            "checkpoint-consumer-0_shop-app-.tar",
        ];
        for name in &others {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::write(&ours, "").unwrap();
        let begun: Timestamp = "2026-11-23T08:02:00Z".parse().unwrap();
        assert_eq!(since(folder.path(), &origin, begun.as_second()), std::slice::from_ref(&ours));
        assert!(is_of(&ours, &origin) && !is_of(&at(others[1]), &origin));
        assert_eq!(since(Path::new("/nowhere"), &origin, 0), Vec::<PathBuf>::new());
    }
}
