//! The processes of a container, as /proc shows them: what CRIU can't dump.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{read, sockets};
use crate::facts::{Known, Process};
use crate::text::Text;

/// A container can make as many of these as it likes: so many processes are looked at, so many open files
/// of each, and so many sockets of all.
const PROCESSES: usize = 1_000;
const FILES: usize = 10_000;
const SOCKETS: usize = 100_000;
/// Names that are told of each kind.
const NAMES: usize = 8;
/// A container's ID is never shorter, in full.
const ID: usize = 16;
/// Devices without a state of their own.
const PLAIN: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Handles that CRIU dumps. An inotify is looked at closer, an `io_uring` is a finding of its own.
const DUMPED: [&str; 6] = ["eventfd", "eventpoll", "signalfd", "timerfd", "fanotify", "pidfd"];

/// Looks at the processes of the container with this ID.
pub fn look(root: &Path, id: &str) -> Known<Process> {
    if id.len() < ID || !id.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Text::from(format!("{id:?} is not the ID of a container")));
    }
    let folders = processes(&root.join("proc"), id)?;
    let mut found = Process::default();
    let (mut inodes, mut masters) = (BTreeSet::new(), BTreeSet::new());
    for folder in &folders {
        look_at(folder, &mut found, &mut inodes, &mut masters);
    }
    // CRIU dumps a pair of which both ends are here.
    found.terminals.retain(|terminal| !masters.contains(terminal));
    let first = folders
        .first()
        .ok_or_else(|| Text::from(format!("no process of container {id} on the node")))?;
    let users = |process: &Path| link(&process.join("ns/user"));
    if let (Some(own), Some(node)) = (users(first), users(&root.join("proc/1"))) {
        found.user_namespace = own != node;
    }
    sockets::count(first, &inodes, &mut found);
    Ok(found)
}

/// The folders of processes in a cgroup that bears the ID. The runtime's monitor is in one that says so.
fn processes(proc: &Path, id: &str) -> Known<Vec<PathBuf>> {
    let entries = fs::read_dir(proc)
        .map_err(|error| Text::from(format!("list {}: {error}", proc.display())))?;
    let is_process = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let of_container = |path: &PathBuf| {
        let groups = read(&path.join("cgroup")).unwrap_or_default();
        let mut parts = groups.lines().flat_map(|line| line.split('/'));
        parts.any(|part| part.contains(id) && !part.contains("conmon"))
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_process)
        .filter(of_container)
        .take(PROCESSES)
        .collect();
    found.sort();
    Ok(found)
}

fn look_at(
    folder: &Path,
    found: &mut Process,
    inodes: &mut BTreeSet<u64>,
    masters: &mut BTreeSet<Text>,
) {
    found.count += 1;
    found.memory += resident(folder);
    let Ok(entries) = fs::read_dir(folder.join("fd")) else {
        found.unread += 1;
        return;
    };
    let overlays = overlays(&read(&folder.join("mountinfo")).unwrap_or_default());
    for entry in entries.flatten().take(FILES) {
        let Some(target) = link(&entry.path()) else { continue };
        let info = folder.join("fdinfo").join(entry.file_name());
        if let Some(terminal) = master_of(&target, &info) {
            masters.insert(terminal);
            continue;
        }
        open_file(&target, found, inodes);
        if target == "anon_inode:inotify" {
            found.overlay_watches += watches(&read(&info).unwrap_or_default(), &overlays);
        }
    }
    for line in read(&folder.join("maps")).unwrap_or_default().lines() {
        let Some(at) = line.find(" /dev/").or_else(|| line.find(" anon_inode:")) else { continue };
        open_file(line[at..].trim(), found, inodes);
    }
}

/// The terminal whose other end is open.
fn master_of(target: &str, info: &Path) -> Option<Text> {
    if !target.starts_with("/dev/") || !target.ends_with("ptmx") {
        return None;
    }
    let info = read(info).ok()?;
    let index = info.lines().find_map(|line| line.strip_prefix("tty-index:"))?;
    Some(Text::from(format!("/dev/pts/{}", index.trim())))
}

/// One thing that is open, or mapped, by what /proc calls it.
fn open_file(target: &str, found: &mut Process, inodes: &mut BTreeSet<u64>) {
    if let Some(inode) = target.strip_prefix("socket:[").and_then(|it| it.strip_suffix(']')) {
        inodes.extend(inode.parse::<u64>().ok().filter(|_| inodes.len() < SOCKETS));
    } else if let Some(handle) = target.strip_prefix("anon_inode:") {
        match handle.trim_matches(['[', ']']) {
            "io_uring" => found.io_uring = true,
            "inotify" => {}
            plain if DUMPED.contains(&plain) => {}
            other => {
                name(&mut found.handles, other);
            }
        }
    } else if let Some(device) = target.strip_prefix("/dev/") {
        let device = device.trim_end_matches(" (deleted)");
        if ["pts/", "tty", "ptmx", "console"].iter().any(|it| device.starts_with(it)) {
            name(&mut found.terminals, target);
        } else if !PLAIN.contains(&device)
            && !["shm/", "mqueue/"].iter().any(|it| device.starts_with(it))
        {
            name(&mut found.devices, target);
        }
    }
}

fn name(names: &mut BTreeSet<Text>, new: &str) {
    if names.len() < NAMES {
        names.insert(Text::from(new));
    }
}

/// `VmRSS:     1234 kB`
fn resident(folder: &Path) -> u64 {
    let status = read(&folder.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// The device numbers of overlay file systems, as fdinfo writes them: `29 1 0:52 / / rw - overlay …`.
fn overlays(mountinfo: &str) -> BTreeSet<u64> {
    let number = |line: &str| -> Option<u64> {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("overlay ").then_some(())?;
        let (major, minor) = mount.split_whitespace().nth(2)?.split_once(':')?;
        Some((major.parse::<u64>().ok()? << 20) | minor.parse::<u64>().ok()?)
    };
    mountinfo.lines().filter_map(number).collect()
}

/// `inotify wd:1 ino:9e7e sdev:800013 mask:800afce …`, the number in hexadecimal.
fn watches(fdinfo: &str, overlays: &BTreeSet<u64>) -> u32 {
    let on_overlay = |line: &&str| {
        let device = line.split_whitespace().find_map(|word| word.strip_prefix("sdev:"));
        let device = device.and_then(|text| u64::from_str_radix(text, 16).ok());
        line.starts_with("inotify ") && device.is_some_and(|device| overlays.contains(&device))
    };
    u32::try_from(fdinfo.lines().filter(on_overlay).count()).unwrap_or(u32::MAX)
}

fn link(path: &Path) -> Option<String> {
    fs::read_link(path).ok().map(|target| target.to_string_lossy().into_owned())
}
