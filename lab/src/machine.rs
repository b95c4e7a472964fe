//! One machine of the lab: a process in namespaces of its own, and everything below it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Layout,
    command::{append, tail},
    component::Component,
    error::{Context, LabError, Result},
};

const SCRIPT: &str = include_str!("../scripts/machine.sh");
/// Joins the cgroups named before `--`, then becomes the command after it. A process can
/// only be moved before it starts if it moves itself.
const JOIN: &str = r#"while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@""#;
const SEARCH_PATH: &str = "/opt/shadow-lab/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const BOOT: Duration = Duration::from_secs(15);

/// A running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) name: String,
    /// The host's number for its init process.
    pid: u32,
    /// When that process started, in clock ticks since boot: tells it from a later
    /// process with the same number.
    started: u64,
    /// The `cgroup.procs` files its processes join.
    cgroups: Vec<PathBuf>,
}

/// Where a machine's root comes from and where its changes go.
pub(crate) struct Storage<'a> {
    pub(crate) rootfs: &'a Path,
    pub(crate) bin: &'a Path,
    pub(crate) data: &'a Path,
    pub(crate) log: &'a Path,
}

impl Machine {
    /// Starts a machine and waits until its root is complete.
    pub(crate) fn start(name: &str, layout: &Layout, storage: &Storage<'_>) -> Result<Self> {
        let cgroups = layout.prepare(name)?;
        let mut child = Self::spawn(name, layout, storage, &cgroups)?;
        let pid = Self::wait_for_init(name, &mut child, storage)?;
        let started = start_time(pid).context(|| format!("find the init process of {name}"))?;
        Ok(Self { name: name.to_owned(), pid, started, cgroups })
    }

    fn spawn(
        name: &str,
        layout: &Layout,
        storage: &Storage<'_>,
        cgroups: &[PathBuf],
    ) -> Result<Child> {
        let log = append(storage.log)?;
        let errors = log.try_clone().context(|| format!("open {}", storage.log.display()))?;
        join(cgroups)
            .args(["setsid", "unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork"])
            .args(["--kill-child", "sh", "-c", SCRIPT, "machine.sh", name])
            .args([storage.rootfs, storage.data, storage.bin])
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .envs(layout.environment(name))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .context(|| format!("start the machine {name}"))
    }

    fn wait_for_init(name: &str, child: &mut Child, storage: &Storage<'_>) -> Result<u32> {
        let file = storage.data.join("etc/init.pid");
        let not_up = |why: String| LabError::NotUp {
            what: format!("the machine {name}"),
            why,
            log: storage.log.to_owned(),
            tail: tail(storage.log),
        };
        let deadline = Instant::now() + BOOT;
        loop {
            if let Some(pid) = fs::read_to_string(&file).ok().and_then(|s| s.trim().parse().ok()) {
                return Ok(pid);
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(not_up(format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(not_up(format!("was not ready after {} s", BOOT.as_secs())));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The host's number for its init process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether its init process still lives.
    pub(crate) fn is_alive(&self) -> bool {
        start_time(self.pid).is_ok_and(|started| started == self.started)
    }

    /// The file that stands for its network namespace.
    pub(crate) fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// A command that runs in all of the machine's namespaces.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = join(&self.cgroups);
        command
            .arg("nsenter")
            .arg(format!("--target={}", self.pid))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--"])
            .args(argv)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("HOME", "/root");
        if let Ok(terminal) = std::env::var("TERM") {
            command.env("TERM", terminal);
        }
        command
    }

    /// A command of the host that runs in the machine's network only.
    pub(crate) fn network_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid)).arg("--").arg(program);
        command
    }

    /// Starts a component in the background, its output in `log`.
    pub(crate) fn launch(&self, component: &Component, log: &Path) -> Result<()> {
        let what = || format!("start {} on {}", component.name, self.name);
        let output = append(log)?;
        let errors = output.try_clone().context(|| format!("open {}", log.display()))?;
        let mut argv = vec!["setsid", "--fork"];
        argv.extend(component.argv.iter().map(String::as_str));
        let status = self
            .command(&argv)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .status()
            .context(what)?;
        if status.success() {
            return Ok(());
        }
        Err(LabError::Program {
            what: what(),
            program: "nsenter".into(),
            status: status.to_string(),
            output: format!(":{}", tail(log)),
        })
    }

    /// The host's numbers of the component's processes.
    pub(crate) fn processes(&self, component: &Component) -> Vec<u32> {
        let Ok(own) = fs::read_link(format!("/proc/{}/ns/pid", self.pid)) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == own)
                    && program_name(*pid).as_deref() == Some(component.process)
            })
            .collect()
    }
}

fn join(cgroups: &[PathBuf]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", JOIN, "join"]).args(cgroups).arg("--");
    command
}

/// The file name of what a process was started as; a process without arguments is a
/// zombie or the kernel's.
fn program_name(pid: u32) -> Option<String> {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let program = arguments.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
    let program = String::from_utf8_lossy(program);
    Some(program.rsplit('/').next()?.to_owned())
}

fn start_time(pid: u32) -> std::io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat)
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "unreadable stat"))
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold spaces and parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_survives_an_odd_process_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4 0 0 0 0 1 2 3 4 20 0 1 0 98765 1 2";
        assert_eq!(parse_start_time(stat), Some(98765));
    }

    #[test]
    fn our_own_start_time_is_readable() {
        assert!(start_time(std::process::id()).unwrap() > 0);
    }
}
