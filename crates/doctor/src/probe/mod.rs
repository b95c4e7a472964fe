//! Probe: what a node knows of itself. It runs on the node, in a pod, and reads the node's files below
//! a root folder; what it can't find out it says, and goes on.

mod criu;
mod host;
mod process;
mod settings;
mod sockets;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

pub use host::{Host, NodeRoot, Output};

use crate::facts::{FORMAT, Known, Report};
use crate::text::Text;

/// Of a file that is read.
const LARGEST: u64 = 4 << 20;

/// What the node below `root` knows. `container` is the ID of one whose processes are looked at.
pub fn report(root: &Path, host: &dyn Host, container: Option<&str>) -> Report {
    let crio = settings::crio(root);
    let storage = crio.as_ref().ok().and_then(|crio| crio.root.clone());
    // The node's own /proc first: its programs are run with one of their own in its place.
    let process = container.map(|id| process::look(root, id));
    Report {
        format: FORMAT,
        containerd: settings::containerd(root),
        options: criu::options(root),
        cgroup: cgroup(root),
        cpu: features(root),
        checkpoints_free: free(root, host, &["var/lib/kubelet/checkpoints", "var/lib/kubelet"]),
        storage_free: free(root, host, &storages(storage.as_ref())),
        process,
        crio,
        criu: criu::criu(host),
        crun: criu::crun(host),
    }
}

fn storages(of_crio: Option<&Text>) -> Vec<&str> {
    let given = of_crio.map(|root| root.as_str().trim_start_matches('/'));
    given.into_iter().chain(["var/lib/containers/storage", "var/lib/containerd"]).collect()
}

/// Where the first of `folders` that exists lies.
fn free(root: &Path, host: &dyn Host, folders: &[&str]) -> Known<u64> {
    let folder = folders.iter().map(|folder| root.join(folder)).find(|folder| folder.is_dir());
    let folder = folder.ok_or_else(|| {
        Text::from(format!("none of these is a folder: /{}", folders.join(", /")))
    })?;
    host.free(&folder)
}

/// Only version 2 has this file in its root, and version 1 has a folder for each controller.
fn cgroup(root: &Path) -> Known<u8> {
    let mounted = root.join("sys/fs/cgroup");
    if mounted.join("cgroup.controllers").exists() {
        return Ok(2);
    }
    if mounted.join("memory").is_dir() || mounted.join("pids").is_dir() {
        return Ok(1);
    }
    Err(Text::from("/sys/fs/cgroup has the controllers of neither version 1 nor 2"))
}

/// What all cores have. A process that is restored may run on any.
fn features(root: &Path) -> Known<BTreeSet<Text>> {
    let text = read(&root.join("proc/cpuinfo"))?;
    let of_core = |line: &str| -> Option<BTreeSet<Text>> {
        let (key, value) = line.split_once(':')?;
        let flags = matches!(key.trim(), "flags" | "Features");
        flags.then(|| value.split_whitespace().map(Text::from).collect())
    };
    let cores = text.lines().filter_map(of_core);
    let common = cores.reduce(|all, core| all.intersection(&core).cloned().collect());
    common.ok_or_else(|| Text::from("/proc/cpuinfo names no features of the CPU"))
}

/// Text of a file; what is no text in it is replaced.
fn read(path: &Path) -> Known<String> {
    let failed = |error: std::io::Error| Text::from(format!("read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(LARGEST).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// As [`read`]; nothing where there is no such file.
fn read_if_there(path: &Path) -> Known<Option<String>> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests;
