//! `lab down`: everything of the lab sits in its cgroups and in its machines' namespaces,
//! so killing the cgroups takes all of it; what remains are empty cgroups and files.

use std::{fs, process::Command};

use crate::{
    cgroup::Layout,
    command::run,
    error::{Context, Result},
    lab::places,
    lock::Lock,
    parts::remove,
    preflight,
    progress::Progress,
    record::{Places, Record},
};

/// Removes the lab from this machine. Its parts and logs stay in the cache.
pub fn down() -> Result<()> {
    preflight::root()?;
    let _lock = Lock::take()?;
    Progress::new().step("taking the lab down", clear)
}

/// As [`down`], for a caller that holds the lock.
pub(crate) fn clear() -> Result<()> {
    // An unreadable record must not stand in the way of removing it.
    let places = places().unwrap_or_else(|_| Places::from_environment());
    let layout = Layout::detect()?;
    layout.kill()?;
    layout.remove()?;
    if layout.has_private_hugetlb() {
        clear_hugetlb(&places)?;
    }
    remove(&places.run())?;
    Record::clear()
}

/// The machines' own hugetlb hierarchy is mounted nowhere any more, but the kernel keeps
/// it while it has cgroups. Mounted once more, out of everyone's sight, it is emptied.
fn clear_hugetlb(places: &Places) -> Result<()> {
    let mount = places.run().join("hugetlb");
    fs::create_dir_all(&mount).context(|| format!("create {}", mount.display()))?;
    let script = "mount -t cgroup -o hugetlb cgroup \"$1\" && \
        { [ ! -d \"$1/shadow-lab\" ] || find \"$1/shadow-lab\" -depth -type d -exec rmdir {} +; }";
    run(
        "remove the lab's hugetlb cgroups",
        Command::new("unshare").args(["--mount", "/bin/sh", "-ec", script, "clear"]).arg(&mount),
    )?;
    Ok(())
}
