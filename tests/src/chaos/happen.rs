//! How it goes wrong on the lab, and how it is put right again.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::fault::{End, Fault};
use crate::cluster::{Cluster, wait_for};
use crate::migrate::{self, migrations};

const CONTROL: &str = "control";
/// As long as systemd takes.
const RESTARTED: Duration = Duration::from_secs(5);
const API_AWAY: Duration = Duration::from_secs(20);
const REGISTRY_AWAY: Duration = Duration::from_secs(15);
const POWER_AWAY: Duration = Duration::from_secs(20);
const FOR_A_WHILE: Duration = Duration::from_secs(10);
/// How long is waited for something that is to be harmed to be there.
const SOON: Duration = Duration::from_secs(15);
/// Of the lab's registry, on the control machine.
const REGISTRY: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 213, 0, 1), 5000);
const AMQP: [&str; 2] = ["5672", "15672"];
/// What CRI-O writes to when it pulls.
const PULLED_TO: [&str; 2] = ["/var/tmp", "/var/lib/containers/storage/overlay-images"];

/// Where it happens.
pub(super) struct Scene {
    pub cluster: Cluster,
    /// Absent in a control run.
    pub migration: Option<String>,
    pub source: Pod,
    /// The name that the copy has.
    pub target: String,
    /// The source's, and the target's.
    pub nodes: (String, String),
}

impl Scene {
    fn node(&self, end: End) -> &str {
        if end == End::Source { &self.nodes.0 } else { &self.nodes.1 }
    }

    fn pod(&self, end: End) -> String {
        if end == End::Source { self.source.name_any() } else { self.target.clone() }
    }

    /// It goes wrong now, and is right again when this ends.
    pub(super) async fn happen(&self, fault: &Fault) -> anyhow::Result<()> {
        let lab = &self.cluster.lab;
        match fault {
            // In the migration's manifest.
            Fault::Nothing | Fault::OperatorKilled(_) | Fault::ClockJumps(_) => Ok(()),
            Fault::BrokerRestarts => self.restart(CONTROL, "rabbitmq", Duration::ZERO).await,
            Fault::MemoryAlarm => {
                self.watermark("0.00001")?;
                sleep(FOR_A_WHILE).await;
                self.watermark("0.4")
            }
            Fault::OperatorCut(seconds) => self.cut_operator(Duration::from_secs(*seconds)).await,
            Fault::CopyCut(end, seconds) => self.cut(*end, Duration::from_secs(*seconds)).await,
            Fault::ApiServerAway => self.restart(CONTROL, "kube-apiserver", API_AWAY).await,
            Fault::KubeletKilled(end) => self.kill(self.node(*end), "kubelet").await,
            Fault::RuntimeKilled(end) => self.kill(self.node(*end), "crio").await,
            Fault::AgentKilled(end) => self.kill_agent(self.node(*end)).await,
            Fault::PowerOff(end) => {
                lab.power_off(self.node(*end))?;
                sleep(POWER_AWAY).await;
                Ok(lab.power_on(self.node(*end))?)
            }
            Fault::DiskFull => self.fill(self.node(End::Target)).await,
            Fault::RegistryAway => self.restart(CONTROL, "registry", REGISTRY_AWAY).await,
            Fault::RegistryFails => self.registry_fails().await,
            Fault::ProcessKilled(end) => self.kill_process(*end).await,
            Fault::PodDeleted(end) => self.delete_pod(*end).await,
            Fault::JobDeleted => self.delete_job().await,
            Fault::SecretDeleted => self.delete_secret().await,
            Fault::MigrationDeleted => self.delete_migration().await,
            Fault::MigrationForced => {
                let name = self.migration.as_ref().context("a migration")?;
                migrate::remove_by_force(&self.cluster, name).await
            }
            Fault::Aborted => self.abort().await,
        }
    }

    async fn restart(&self, machine: &str, part: &str, away: Duration) -> anyhow::Result<()> {
        // As a crash: asked to end, the API server would first see all watches off.
        self.cluster.lab.kill(machine, part)?;
        sleep(away).await;
        Ok(self.cluster.lab.start(machine, part)?)
    }

    async fn kill(&self, node: &str, part: &str) -> anyhow::Result<()> {
        self.cluster.lab.kill(node, part)?;
        sleep(RESTARTED).await;
        Ok(self.cluster.lab.start(node, part)?)
    }

    fn watermark(&self, fraction: &str) -> anyhow::Result<()> {
        self.cluster.lab.exec(
            CONTROL,
            &[
                "env",
                "HOME=/var/lib/rabbitmq",
                "RABBITMQ_NODENAME=rabbit@localhost",
                "rabbitmqctl",
                "set_vm_memory_high_watermark",
                fraction,
            ],
        )?;
        Ok(())
    }

    async fn cut_operator(&self, lasts: Duration) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), "ms2m-system");
        let operators = ListParams::default().labels("app.kubernetes.io/name=shadow-operator");
        let found = pods.list(&operators).await?;
        let addresses: Vec<String> = found.iter().filter_map(address).collect();
        ensure!(!addresses.is_empty(), "no operator has an address");
        self.cut_addresses(&addresses, &[], lasts).await
    }

    /// Of a node whose copy is not there yet, whoever comes.
    async fn cut(&self, end: End, lasts: Duration) -> anyhow::Result<()> {
        let pod = self.cluster.pods().get_opt(&self.pod(end)).await?;
        if let Some(address) = pod.as_ref().and_then(address) {
            return self.cut_addresses(&[address], &[], lasts).await;
        }
        let node = self.node(end);
        let network = format!("10.214.{}.0/24", node.trim_start_matches("worker-"));
        let all: Api<Pod> = Api::all(self.cluster.client.clone());
        let there = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let others: Vec<String> = all.list(&there).await?.iter().filter_map(address).collect();
        self.cut_addresses(&[network], &others, lasts).await
    }

    async fn cut_addresses(
        &self,
        cut: &[String],
        but: &[String],
        lasts: Duration,
    ) -> anyhow::Result<()> {
        let tables = |arguments: &[&str]| {
            let mut argv = vec!["iptables", "-w"];
            argv.extend(arguments);
            self.cluster.lab.exec(CONTROL, &argv)
        };
        tables(&["-N", "CHAOS"])?;
        let verdicts = but.iter().map(|it| (it, "ACCEPT")).chain(cut.iter().map(|it| (it, "DROP")));
        for (address, verdict) in verdicts {
            for port in AMQP {
                let to = ["-s", address, "-p", "tcp", "--dport", port, "-j", verdict];
                tables(&[&["-A", "CHAOS"], &to[..]].concat())?;
                let from = ["-d", address, "-p", "tcp", "--sport", port, "-j", verdict];
                tables(&[&["-A", "CHAOS"], &from[..]].concat())?;
            }
        }
        for chain in ["INPUT", "OUTPUT"] {
            tables(&["-I", chain, "-j", "CHAOS"])?;
        }
        sleep(lasts).await;
        for chain in ["INPUT", "OUTPUT"] {
            tables(&["-D", chain, "-j", "CHAOS"])?;
        }
        tables(&["-F", "CHAOS"])?;
        tables(&["-X", "CHAOS"])?;
        Ok(())
    }

    async fn kill_agent(&self, node: &str) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), "ms2m-system");
        let agents = ListParams::default().labels("app.kubernetes.io/name=ms2m-agent");
        let found = pods.list(&agents).await?;
        let on =
            |pod: &&Pod| pod.spec.as_ref().and_then(|it| it.node_name.as_deref()) == Some(node);
        let agent = found.iter().find(on).context("no agent on the node")?;
        self.cluster.kill_container(agent, node)
    }

    /// A file system without room in the place of what the runtime pulls to, until it is over.
    async fn fill(&self, node: &str) -> anyhow::Result<()> {
        let exec = |argv: &[&str]| self.cluster.lab.exec(node, argv);
        for folder in PULLED_TO {
            exec(&["mount", "-t", "tmpfs", "-o", "size=4k,mode=1777", "tmpfs", folder])?;
        }
        let ended = self.ended().await;
        for folder in PULLED_TO {
            exec(&["umount", "-l", folder])?;
        }
        ended
    }

    async fn ended(&self) -> anyhow::Result<()> {
        let Some(name) = &self.migration else {
            sleep(FOR_A_WHILE).await;
            return Ok(());
        };
        wait_for("the migration to end", Duration::from_mins(6), async || {
            let found = migrations(&self.cluster).get_opt(name).await?;
            let over = found
                .as_ref()
                .is_none_or(|it| matches!(crate::migrate::phase(it), "Completed" | "Failed"));
            Ok(over.then_some(()))
        })
        .await
    }

    async fn registry_fails(&self) -> anyhow::Result<()> {
        self.cluster.lab.stop(CONTROL, "registry")?;
        // It may be in the middle of an answer.
        let listener = wait_for("the registry to let its port go", SOON, async || {
            Ok(Some(tokio::net::TcpListener::bind(REGISTRY).await?))
        })
        .await?;
        let answer = async {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { continue };
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request).await;
                    let answer = b"HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\n\
                                   content-length: 0\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                });
            }
        };
        let _ = tokio::time::timeout(REGISTRY_AWAY, answer).await;
        drop(listener);
        Ok(self.cluster.lab.start(CONTROL, "registry")?)
    }

    async fn kill_process(&self, end: End) -> anyhow::Result<()> {
        let name = self.pod(end);
        wait_for("a process to kill", SOON, async || {
            let Some(pod) = self.cluster.pods().get_opt(&name).await? else { return Ok(None) };
            let node = pod.spec.as_ref().and_then(|it| it.node_name.clone()).unwrap_or_default();
            Ok(Some(self.cluster.kill_container(&pod, &node)?))
        })
        .await
    }

    async fn delete_pod(&self, end: End) -> anyhow::Result<()> {
        let name = self.pod(end);
        let params = DeleteParams::default().grace_period(1);
        wait_for("a pod to delete", SOON, async || {
            Ok(self.cluster.pods().delete(&name, &params).await.is_ok().then_some(()))
        })
        .await
    }

    async fn delete_job(&self) -> anyhow::Result<()> {
        let jobs: Api<Job> = Api::default_namespaced(self.cluster.client.clone());
        wait_for("a Job to delete", SOON, async || {
            let found = jobs.list(&ListParams::default()).await?;
            let Some(job) = found.items.first() else { return Ok(None) };
            jobs.delete(&job.name_any(), &DeleteParams::background()).await?;
            Ok(Some(()))
        })
        .await
    }

    async fn delete_secret(&self) -> anyhow::Result<()> {
        let secrets: Api<Secret> = Api::default_namespaced(self.cluster.client.clone());
        let kept = secrets.get("broker").await?;
        secrets.delete("broker", &DeleteParams::default()).await?;
        sleep(FOR_A_WHILE).await;
        let name = ObjectMeta { name: Some("broker".to_owned()), ..ObjectMeta::default() };
        let again = Secret { metadata: name, ..kept };
        secrets.create(&PostParams::default(), &again).await?;
        Ok(())
    }

    async fn delete_migration(&self) -> anyhow::Result<()> {
        let name = self.migration.as_ref().context("a migration")?;
        migrations(&self.cluster).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    async fn abort(&self) -> anyhow::Result<()> {
        let name = self.migration.as_ref().context("a migration")?;
        let patch = Patch::Merge(json!({ "spec": { "abort": true } }));
        migrations(&self.cluster).patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

fn address(pod: &Pod) -> Option<String> {
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let status = pod.status.as_ref()?;
    status.pod_ip.clone().filter(|ip| !host && !ip.is_empty())
}
