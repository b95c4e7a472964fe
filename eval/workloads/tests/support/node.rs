//! One `RabbitMQ` node of our own, with its own files, ports and epmd, shared by the tests that
//! run at the same time and stopped with the last of them.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{eventually, free_port, http};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// guest:guest, which `RabbitMQ` lets in from loopback only.
const LOGIN: &str = "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n";

static SHARED: Mutex<Weak<Node>> = Mutex::const_new(Weak::new());

pub struct Node {
    port: u16,
    management: u16,
    processes: Vec<Child>,
    files: TempDir,
}

impl Node {
    /// The node that other tests use already, or a new one.
    pub async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(node) = shared.upgrade() {
            return node;
        }
        let node = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&node);
        node
    }

    async fn start() -> Self {
        let files = TempDir::new().expect("a folder for the broker");
        let (port, management, epmd) = (free_port(), free_port(), free_port());
        let file = |name: &str| files.path().join(name);
        std::fs::write(file("plugins"), "[rabbitmq_management].\n").expect("write plugins");
        let configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nmanagement.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {management}\ncollect_statistics_interval = 500\n"
        );
        std::fs::write(file("rabbitmq.conf"), configuration).expect("write configuration");
        let log = std::fs::File::create(file("log")).expect("create log");
        // Started here, epmd stays our child; RabbitMQ would leave one behind.
        let epmd_process = Command::new("epmd")
            .args(["-port", &epmd.to_string(), "-address", "127.0.0.1"])
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("epmd runs: install rabbitmq-server");
        let server = Command::new(SERVER)
            .env("HOME", files.path())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", epmd.to_string())
            .env("RABBITMQ_NODENAME", format!("workloads{port}@localhost"))
            .env("RABBITMQ_DIST_PORT", free_port().to_string())
            .env("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("plugins"))
            .env("RABBITMQ_MNESIA_BASE", file("mnesia"))
            .env("RABBITMQ_LOG_BASE", file("logs"))
            .env("RABBITMQ_PID_FILE", file("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("rabbitmq-server runs: install it");
        let node = Self { port, management, processes: vec![server, epmd_process], files };
        eventually("the broker starts", async || {
            let said = std::fs::read_to_string(node.files.path().join("log")).unwrap_or_default();
            node.get("/api/overview").await.map_err(|error| format!("{error}\n{said}"))
        })
        .await;
        node
    }

    /// Where applications connect.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Asks the management API.
    pub async fn get(&self, path: &str) -> Result<Value, String> {
        let body = http::ask(self.management, "GET", path, LOGIN).await?;
        serde_json::from_str(&body).map_err(|error| error.to_string())
    }

    /// Closes the connection that bears this name, as an operator would.
    pub async fn close_connection(&self, name: &str) {
        let found = async || {
            let connections = self.get("/api/connections").await?;
            let named = |connection: &&Value| {
                connection["client_properties"]["connection_name"]
                    .as_str()
                    .is_some_and(|given| given.starts_with(name))
            };
            let found = connections.as_array().and_then(|all| all.iter().find(named));
            let id = found.and_then(|connection| connection["name"].as_str());
            let id = id.ok_or_else(|| format!("no connection {name} in {connections}"))?;
            let path = format!("/api/connections/{}", id.replace(' ', "%20").replace('>', "%3E"));
            http::ask(self.management, "DELETE", &path, LOGIN).await
        };
        eventually("the connection is closed", found).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let group = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = process.wait();
        }
    }
}
