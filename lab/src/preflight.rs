//! What this machine must have, checked before anything is started.

use std::{fs, path::Path, process::Command};

use crate::{
    command::run,
    error::{Context, LabError, Result},
    progress::Progress,
};

const GIB: u64 = 1 << 30;
const MEMORY: u64 = 6;
/// Free disk: for building all parts, and for running with parts that are there.
const DISK_COLD: u64 = 15;
const DISK_WARM: u64 = 4;
const GO: (u32, u32) = (1, 26);

/// A file whose absence means that a Debian package is missing, and that package.
const TOOLS: [(&str, &str); 6] = [
    ("/usr/sbin/debootstrap", "debootstrap"),
    ("/sbin/ip", "iproute2"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/pkg-config", "pkg-config"),
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("/usr/bin/unshare", "util-linux"),
];

/// Refuses a machine that can't run the lab, with the one sentence that says why.
pub(crate) fn check(cache: &Path, cold: bool) -> Result<()> {
    root()?;
    memory(&fs::read_to_string("/proc/meminfo").context(|| "read /proc/meminfo".into())?)?;
    disk(cache, if cold { DISK_COLD } else { DISK_WARM })?;
    unified_cgroups()?;
    if cold {
        go()?;
    }
    Ok(())
}

/// Refuses anyone but root.
pub(crate) fn root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    unfit("the lab makes namespaces, mounts and cgroups: run it as root")
}

/// Installs what is missing from Debian's packages.
pub(crate) fn install_tools(progress: &Progress) -> Result<()> {
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        return unfit(&format!(
            "the lab needs {names} and this is not a Debian machine: install them first"
        ));
    }
    progress.step(&format!("installing {names}"), || {
        run("read Debian's package lists", Command::new("apt-get").args(["update", "-q"]))?;
        run(
            &format!("install {names}"),
            Command::new("apt-get")
                .args(["install", "-y", "-q", "--no-install-recommends"])
                .args(&missing)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    })?;
    Ok(())
}

fn memory(meminfo: &str) -> Result<()> {
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    // The kernel keeps some for itself: a machine sold with 6 GiB reports a bit less.
    if kib * 1024 >= MEMORY * GIB - GIB / 2 {
        return Ok(());
    }
    unfit(&format!("the lab needs {MEMORY} GiB of memory and this machine has {} MiB", kib / 1024))
}

fn disk(cache: &Path, needed: u64) -> Result<()> {
    fs::create_dir_all(cache).context(|| format!("create {}", cache.display()))?;
    let status = rustix::fs::statvfs(cache)
        .context(|| format!("read the free space of {}", cache.display()))?;
    let free = status.f_bavail * status.f_frsize / GIB;
    if free >= needed {
        return Ok(());
    }
    unfit(&format!(
        "the lab needs {needed} GiB of free disk for {} and there are {free}; \
         SHADOW_LAB_CACHE= moves it",
        cache.display()
    ))
}

fn unified_cgroups() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context(|| "read /proc/mounts".into())?;
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        return Ok(());
    }
    unfit("the lab needs a mounted cgroup v2 tree, if only beside the v1 controllers")
}

fn go() -> Result<()> {
    let Ok(output) = Command::new("go").args(["env", "GOVERSION"]).output() else {
        return unfit(&format!(
            "the lab builds Kubernetes with Go {}.{} or newer and there is no `go`",
            GO.0, GO.1
        ));
    };
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if parse_go(&version).is_some_and(|found| found >= GO) {
        return Ok(());
    }
    unfit(&format!(
        "the lab builds Kubernetes with Go {}.{} or newer and `go` is {version}",
        GO.0, GO.1
    ))
}

fn parse_go(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn unfit<T>(sentence: &str) -> Result<T> {
    Err(LabError::Unfit(sentence.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_compare_as_numbers() {
        assert_eq!(parse_go("go1.26.8"), Some((1, 26)));
        assert_eq!(parse_go("go1.27rc1"), Some((1, 27)));
        assert!(parse_go("go1.9.2") < Some(GO));
        assert_eq!(parse_go("devel"), None);
    }

    #[test]
    fn too_little_memory_is_one_sentence() {
        assert!(memory("MemTotal:       24684096 kB\n").is_ok());
        let error = memory("MemTotal:        2048000 kB\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the lab needs 6 GiB of memory and this machine has 2000 MiB"
        );
    }
}
