//! The archives of attempts at a checkpoint whose answer was lost.
//!
//! The kubelet writes `checkpoint-POD_NAMESPACE-CONTAINER-TIME.tar` (`CheckpointContainer` in its
//! `kubelet.go`) and tells the name only in its answer. The time is when the attempt began, by the
//! node's clock: only such times are compared with each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

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
}
