//! Control groups of the lab's machines, on a pure v2 host and on a host with v1
//! controllers beside a v2 tree ("hybrid").
//!
//! Every machine's processes sit in a v2 leaf of their own. On a hybrid host CRIU also
//! dumps the v2 tree below a task's v2 cgroup and re-creates it inside the restored
//! container's: with tasks in the v2 root, every migration would double the number of
//! cgroups.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::error::{Context, Result};

/// The directory under every hierarchy that holds all of the lab's cgroups.
const TOP: &str = "shadow-lab";
/// A machine's own processes; its pods are siblings, as v2 wants no processes in inner nodes.
const SYSTEM: &str = "system";
const REMOVAL: Duration = Duration::from_secs(10);

/// Where the host has its hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The v2 tree. A host without one can't run the lab's kind of restore.
    v2: Option<PathBuf>,
    /// The v1 hierarchies; empty on a pure v2 host.
    v1: Vec<PathBuf>,
    /// v1 without a hugetlb hierarchy: each machine mounts one for itself.
    hugetlb_missing: bool,
}

impl Layout {
    /// Looks at the host.
    pub(crate) fn detect() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context(|| "read /proc/mounts".into())?;
        let controllers =
            fs::read_to_string("/proc/cgroups").context(|| "read /proc/cgroups".into())?;
        Ok(Self::parse(&mounts, &controllers))
    }

    fn parse(mounts: &str, controllers: &str) -> Self {
        let mut layout = Self { v2: None, v1: Vec::new(), hugetlb_missing: false };
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(path), Some(kind)) = (fields.next(), fields.next()) else { continue };
            if !path.starts_with("/sys/fs/cgroup") {
                continue;
            }
            match kind {
                "cgroup2" if layout.v2.is_none() => layout.v2 = Some(path.into()),
                "cgroup" => layout.v1.push(path.into()),
                _ => {}
            }
        }
        let has_hugetlb = layout.v1.iter().any(|path| path.ends_with("hugetlb"));
        let kernel_has_it = controllers.lines().any(|line| line.starts_with("hugetlb\t"));
        layout.hugetlb_missing = !layout.v1.is_empty() && !has_hugetlb && kernel_has_it;
        layout
    }

    /// What `machine.sh` needs to know, as environment variables.
    pub(crate) fn environment(&self, machine: &str) -> Vec<(&'static str, String)> {
        if self.v1.is_empty() {
            let v2 = self.v2.as_deref().unwrap_or(Path::new("/sys/fs/cgroup"));
            return vec![("CGROUP_V2", v2.display().to_string())];
        }
        let names: Vec<_> = self.v1.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        let mut environment = vec![("CGROUP_V1", names.join(" "))];
        if self.hugetlb_missing && machine != crate::plan::CONTROL {
            environment.push(("HUGETLB", "1".into()));
        }
        environment
    }

    /// The cgroup below which the machine's runtime puts its pods.
    pub(crate) fn pods_root(machine: &str) -> String {
        format!("/{TOP}/{machine}/pods")
    }

    /// Creates the machine's cgroups and returns the `cgroup.procs` files its processes
    /// join. Of v1 only memory: the session that started the lab may be limited, or
    /// taken down, by its memory cgroup, and the lab outlives it.
    pub(crate) fn prepare(&self, machine: &str) -> Result<Vec<PathBuf>> {
        let memory = self.v1.iter().find(|path| path.ends_with("memory"));
        let mut joined = Vec::new();
        for hierarchy in self.v2.iter().chain(memory) {
            let leaf = hierarchy.join(TOP).join(machine).join(SYSTEM);
            fs::create_dir_all(&leaf)
                .context(|| format!("create the cgroup {}", leaf.display()))?;
            joined.push(leaf.join("cgroup.procs"));
        }
        if self.v1.is_empty()
            && let Some(root) = &self.v2
        {
            delegate_controllers(root, machine)?;
        }
        Ok(joined)
    }

    /// The number of v2 cgroups below the lab. It must not grow with every migration.
    pub(crate) fn count(&self) -> usize {
        self.v2.as_ref().map_or(0, |root| count_directories(&root.join(TOP)))
    }

    /// Kills every process of the lab and waits until none is left. They can't escape: all
    /// descend from one that joined the lab's v2 cgroup.
    pub(crate) fn kill(&self) -> Result<()> {
        let Some(top) = self.v2.as_ref().map(|root| root.join(TOP)) else { return Ok(()) };
        if !top.exists() {
            return Ok(());
        }
        fs::write(top.join("cgroup.kill"), "1").context(|| "kill the lab's processes".into())?;
        let events = top.join("cgroup.events");
        let deadline = Instant::now() + REMOVAL;
        loop {
            let state =
                fs::read_to_string(&events).context(|| format!("read {}", events.display()))?;
            if state.contains("populated 0") {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::from(io::ErrorKind::TimedOut))
                    .context(|| "see the lab's processes end".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes all of the lab's cgroups; its processes must be dead or dying.
    pub(crate) fn remove(&self) -> Result<()> {
        for hierarchy in self.v2.iter().chain(&self.v1) {
            remove_tree(&hierarchy.join(TOP))?;
        }
        Ok(())
    }

    /// Whether the machines had a hugetlb hierarchy of their own, which outlives them as
    /// long as it has cgroups in it.
    pub(crate) fn has_private_hugetlb(&self) -> bool {
        self.hugetlb_missing
    }
}

/// Hands every controller of the v2 root down to the pods of one machine.
fn delegate_controllers(root: &Path, machine: &str) -> Result<()> {
    let path = root.join("cgroup.controllers");
    let available = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
    let enable: Vec<_> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    let top = root.join(TOP);
    for parent in [root.to_path_buf(), top.clone(), top.join(machine)] {
        let control = parent.join("cgroup.subtree_control");
        fs::write(&control, enable.join(" "))
            .context(|| format!("enable controllers in {}", control.display()))?;
    }
    Ok(())
}

fn count_directories(path: &Path) -> usize {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    1 + entries
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| count_directories(&entry.path()))
        .sum::<usize>()
}

/// Removes a cgroup and all below it, waiting for processes that are still being reaped.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let deadline = Instant::now() + REMOVAL;
    loop {
        match remove_once(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => {
                return Err(error).context(|| format!("remove the cgroup {}", path.display()));
            }
        }
    }
}

fn remove_once(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_once(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    const CONTROLLERS: &str = "#subsys_name\thierarchy\nmemory\t4\nhugetlb\t0\n";

    #[test]
    fn a_hybrid_host_shows_v1_and_gets_a_hugetlb_hierarchy() {
        let layout = Layout::parse(HYBRID, CONTROLLERS);
        assert_eq!(
            layout.environment("worker-1"),
            [("CGROUP_V1", "cpu memory".into()), ("HUGETLB", "1".into())]
        );
        assert_eq!(layout.v2, Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn a_hugetlb_hierarchy_of_the_host_is_used() {
        let mounts = format!("{HYBRID}cgroup /sys/fs/cgroup/hugetlb cgroup rw,hugetlb 0 0\n");
        let layout = Layout::parse(&mounts, CONTROLLERS);
        assert!(!layout.has_private_hugetlb());
        assert_eq!(layout.environment("worker-1"), [("CGROUP_V1", "cpu memory hugetlb".into())]);
    }

    #[test]
    fn a_pure_v2_host_is_shown_as_it_is() {
        let layout = Layout::parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "hugetlb\t0\t1\t1\n");
        assert_eq!(layout.environment("worker-1"), [("CGROUP_V2", "/sys/fs/cgroup".into())]);
        assert!(!layout.has_private_hugetlb());
    }

    #[test]
    fn cgroups_are_counted_with_their_children() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("worker-1/pods/a")).unwrap();
        fs::write(top.path().join("worker-1/cgroup.procs"), "").unwrap();
        assert_eq!(count_directories(top.path()), 4);
        remove_once(&top.path().join("worker-1/pods")).unwrap();
        assert_eq!(count_directories(top.path()), 2);
    }
}
