//! The workload's processes: consumers of both kinds, producer, probe.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{eventually, free_port, http};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// Debian's own Python, which has Debian's pika.
const PYTHON: &str = "/usr/bin/python3";

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Rust,
    Python,
}

pub struct Process {
    child: Child,
    pub port: u16,
    files: TempDir,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        let (files, port) = (TempDir::new().expect("a folder"), free_port());
        let log = std::fs::File::create(files.path().join("log")).expect("create log");
        let child = command
            .env("HTTP_PORT", port.to_string())
            .env("HOSTNAME_FILE", files.path().join("hostname"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Self { child: child.expect("the workload runs"), port, files }
    }

    /// A consumer on a pod of this name, whose queue is `<name>.events` and whose exchange is
    /// `<name>.fanout`; `env` may say otherwise.
    pub async fn consumer(kind: Kind, url: &str, name: &str, env: &[(&str, &str)]) -> Self {
        let mut command = match kind {
            Kind::Rust => {
                let mut command = Command::new(WORKLOAD);
                command.arg("consumer");
                command
            }
            Kind::Python => {
                let mut command = Command::new(PYTHON);
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("consumer.py"));
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
        };
        command.env("AMQP_URL", url).env("QUEUE", format!("{name}.events"));
        command.env("EXCHANGE", format!("{name}.fanout")).envs(env.iter().copied());
        // Without its name it can't connect; so there is no race between the two.
        let consumer = Self::spawn(command);
        consumer.rename(name);
        consumer.consuming(&format!("{name}.events")).await;
        consumer
    }

    pub fn producer(url: &str, name: &str, rate: u32) -> Self {
        let mut command = Command::new(WORKLOAD);
        command.args(["producer", "--publishers", "3", "--rate", &rate.to_string()]);
        command.env("AMQP_URL", url).env("EXCHANGE", format!("{name}.fanout"));
        Self::spawn(command)
    }

    pub fn probe(target: u16) -> Self {
        let mut command = Command::new(WORKLOAD);
        command.args(["probe", "--url", &format!("http://127.0.0.1:{target}/ledger")]);
        Self::spawn(command)
    }

    fn hostname_file(&self) -> PathBuf {
        self.files.path().join("hostname")
    }

    /// Gives the pod another name, as a restore does.
    pub fn rename(&self, name: &str) {
        let written = self.files.path().join("new");
        std::fs::write(&written, format!("{name}\n")).expect("write hostname");
        std::fs::rename(written, self.hostname_file()).expect("rename hostname");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }

    /// `/ledger` of a consumer, `/stats` of the others.
    pub async fn get(&self, path: &str) -> Result<Value, String> {
        let answer = http::json(self.port, "GET", path).await;
        answer.map_err(|error| format!("{error}\n{}", self.log()))
    }

    /// Waits until the ledger satisfies `accept`.
    pub async fn ledger(&self, what: &str, accept: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || {
            let ledger = self.get("/ledger").await?;
            if accept(&ledger) { Ok(ledger) } else { Err(format!("{ledger:#}\n{}", self.log())) }
        })
        .await
    }

    pub async fn consuming(&self, queue: &str) -> Value {
        self.ledger(&format!("consumes {queue}"), |ledger| ledger["queue"] == queue).await
    }

    /// Ends publishing or probing and gives the final figures.
    pub async fn stop(&self) -> Value {
        http::json(self.port, "POST", "/stop").await.expect("final figures")
    }

    pub async fn terminate(mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("SIGTERM");
        let child = &mut self.child;
        eventually("the process ends", async || {
            child.try_wait().map_err(|error| error.to_string())?.ok_or("still running".into())
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
