//! The node's programs and disks.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};

use crate::facts::Known;
use crate::text::Text;

/// How long a program of the node may run; `criu check` takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);
/// Of what a program prints.
const LONGEST: u64 = 64 << 10;
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program has printed, both its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// It ended with code 0.
    pub success: bool,
    /// Its words.
    pub text: String,
}

/// What takes more than reading files.
pub trait Host {
    /// Runs a program of the node; nothing where it is not installed.
    fn run(&self, command: &[&str]) -> Known<Option<Output>>;

    /// Free bytes of the disk that `folder` is on.
    fn free(&self, folder: &Path) -> Known<u64>;
}

/// The node this process has entered: its root folder is the node's.
pub struct NodeRoot {
    mounted: OnceLock<Known<()>>,
}

impl NodeRoot {
    /// Makes the node's root, mounted at `folder`, this process's own. So symbolic links in it mean what
    /// they mean on the node, and its programs find their libraries: the image has none of its own.
    pub fn enter(folder: &Path) -> Known<Self> {
        let failed = |error| Text::from(format!("chroot to {}: {error}", folder.display()));
        rustix::process::chroot(folder).map_err(failed)?;
        rustix::process::chdir("/").map_err(failed)?;
        Ok(Self { mounted: OnceLock::new() })
    }

    /// `criu check` writes: into files of its own processes in /proc, and into /tmp. The node's are
    /// read-only here, so both are covered by new ones, in this container's mount namespace.
    fn mounted(&self) -> &Known<()> {
        let cover = |kind: &str, folder: PathBuf| {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount(kind, &folder, kind, flags, None).map_err(|error| {
                Text::from(format!("mount {kind} on {}: {error}", folder.display()))
            })
        };
        self.mounted.get_or_init(|| {
            cover("proc", "/proc".into())?;
            cover("tmpfs", "/tmp".into())
        })
    }
}

impl Host for NodeRoot {
    fn run(&self, command: &[&str]) -> Known<Option<Output>> {
        self.mounted().clone()?;
        run(command)
    }

    fn free(&self, folder: &Path) -> Known<u64> {
        free(folder)
    }
}

/// A node that could not be entered: its files can be read, and this is why nothing else can be told.
impl Host for Text {
    fn run(&self, _: &[&str]) -> Known<Option<Output>> {
        Err(self.clone())
    }

    fn free(&self, folder: &Path) -> Known<u64> {
        free(folder)
    }
}

fn free(folder: &Path) -> Known<u64> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|error| Text::from(format!("statvfs {}: {error}", folder.display())))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn run(command: &[&str]) -> Known<Option<Output>> {
    let [program, arguments @ ..] = command else { return Err(Text::from("no program")) };
    let failed = |error: std::io::Error| Text::from(format!("run {program} on the node: {error}"));
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let (out, err) = (listen(child.stdout.take()), listen(child.stderr.take()));
    let success = wait(&mut child).map_err(failed)?;
    let late = || {
        Text::from(format!("{}: did not end within {} s", command.join(" "), PATIENCE.as_secs()))
    };
    let success = success.ok_or_else(late)?;
    let text = [out, err].map(|words| words.join().unwrap_or_default()).concat();
    Ok(Some(Output { success, text }))
}

fn listen(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What comes after that is read too, or the program would wait for us, and thrown away.
            let _ = pipe.by_ref().take(LONGEST).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Whether it succeeded; nothing where it had to be killed.
fn wait(child: &mut Child) -> std::io::Result<Option<bool>> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_are_read_and_what_is_missing_is_no_error() {
        let output = run(&["sh", "-c", "echo out; echo err >&2; exit 1"]).unwrap();
        let both = Output { success: false, text: "out\nerr\n".to_owned() };
        assert_eq!(output, Some(both));
        assert_eq!(run(&["no-such-program"]), Ok(None));
    }

    #[test]
    fn a_program_that_prints_too_much_is_cut_off() {
        let output = run(&["sh", "-c", "yes | head -c 1000000"]).unwrap();
        assert_eq!(output.unwrap().text.len() as u64, LONGEST);
    }
}
