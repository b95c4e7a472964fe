//! The workload, the operator and the agents between the trials: made anew where one has spoilt them.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, LogParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use shadow_protocol::pending::{Called, target_name};

use super::fault::End;
use super::heal;
use crate::cluster::{Cluster, wait_for};
use crate::workload::Workload;
use crate::{http, migrate, scenario};

/// Of the operator that dies where it is told to.
const IMAGE: &str = "shadow/failpoints";

/// Which application is moved. All but the forgetful one remember their queue when they connect again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Deployment of one.
    Deployment,
    /// The same, which goes back to its own queue when it connects again.
    Forgetful,
    /// A bare pod.
    Bare,
    /// A StatefulSet of one.
    StatefulSet,
}

impl Kind {
    fn workload(self) -> Workload {
        Workload {
            bare: self == Self::Bare,
            stateful_set: self == Self::StatefulSet,
            remember: self != Self::Forgetful,
            ..Workload::default()
        }
    }
}

/// What trials run on.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// The workload has to be made anew.
    pub(super) spoilt: bool,
    /// An operator's clock goes wrong for as long as it lives.
    pub(super) jumped: bool,
    agents: Option<bool>,
    kind: Kind,
}

impl Stage {
    /// The operator with failpoints, and no workload yet.
    pub async fn open() -> anyhow::Result<Self> {
        let cluster = Cluster::connect().await?;
        heal::all(&cluster)?;
        migrate::delete_all(&cluster).await?;
        cluster.install_operator_of(IMAGE, &[("SHADOW_FAILPOINTS", "1")]).await?;
        Ok(Self { cluster, spoilt: true, jumped: false, agents: None, kind: Kind::Deployment })
    }

    /// The workload is not to be used again.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// Everything is there, well, and under load.
    pub(super) async fn prepare(&mut self, kind: Kind, agents: bool) -> anyhow::Result<()> {
        heal::all(&self.cluster)?;
        self.cluster = Cluster::connect().await?;
        heal::nodes_ready(&self.cluster).await?;
        migrate::delete_all(&self.cluster).await?;
        self.fresh_operators().await?;
        if self.agents != Some(agents) {
            if agents {
                self.cluster.install_agents(&self.cluster.lab.nodes()).await?;
            } else {
                self.cluster.remove_agents().await?;
            }
            self.agents = Some(agents);
        }
        let other = self.kind != kind;
        if self.spoilt || other || self.cluster.pod_of("consumer").await.is_err() {
            Workload::remove(&self.cluster).await?;
            kind.workload().deploy(&self.cluster).await?;
            (self.spoilt, self.kind) = (false, kind);
            return Ok(());
        }
        self.fresh_producer().await
    }

    /// A new one, whose publishers nobody has heard of.
    async fn fresh_producer(&self) -> anyhow::Result<()> {
        let grace = DeleteParams::default().grace_period(1);
        let label = ListParams::default().labels("app=producer");
        let before = self.cluster.pods().list(&label).await?;
        self.cluster.pods().delete_collection(&grace, &label).await?;
        wait_for("a new producer", Duration::from_mins(1), async || {
            let pod = self.cluster.pod_of("producer").await?;
            let new = !before.iter().any(|it| it.uid() == pod.uid());
            let stats = http::get(&format!("{}/stats", Cluster::url(&pod)?)).await?;
            Ok((new && stats["totals"]["confirmed"] != 0).then_some(()))
        })
        .await
    }

    /// Publishers and probe are on the node that does not go away with this end.
    pub(super) async fn load_stays_on(&self, away: End) -> anyhow::Result<()> {
        let source = self.cluster.pod_of("consumer").await?;
        let (here, there) = scenario::other_node(&self.cluster, &source)?;
        let node = if away == End::Source { there } else { here };
        self.kind.workload().deploy_load(&self.cluster, Some(&node)).await?;
        self.fresh_producer().await
    }

    /// Containers that were killed are started again later and later: their pods are replaced.
    async fn fresh_operators(&mut self) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), "ms2m-system");
        let found = pods.list(&ListParams::default()).await?;
        for pod in &found {
            let statuses = pod.status.as_ref().and_then(|it| it.container_statuses.as_ref());
            let ended = statuses.into_iter().flatten().any(|it| it.restart_count > 0 || !it.ready);
            if ended || self.jumped {
                pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(1)).await?;
            }
        }
        self.jumped = false;
        self.cluster.wait_deployment("ms2m-system", "shadow-operator").await?;
        // The one that leads is there to stay.
        wait_for("an operator to lead", Duration::from_mins(1), async || {
            let holder = self.holder().await?;
            let pods = pods.list(&ListParams::default()).await?;
            let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
            Ok(pods
                .iter()
                .filter(stays)
                .any(|pod| holder.starts_with(&pod.name_any()))
                .then_some(()))
        })
        .await
    }

    /// Which process leads, as the Lease says.
    async fn holder(&self) -> anyhow::Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client.clone(), "ms2m-system");
        let spec = leases.get("shadow-operator").await?.spec;
        spec.and_then(|it| it.holder_identity).context("nobody leads")
    }

    /// How many operators have led.
    pub(super) async fn generation(&self) -> anyhow::Result<i32> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client.clone(), "ms2m-system");
        let lease = leases.get("shadow-operator").await?;
        lease.spec.and_then(|spec| spec.lease_transitions).context("nobody leads")
    }

    /// Memory of the operator that leads, in bytes.
    pub async fn memory(&self) -> anyhow::Result<u64> {
        let holder = self.holder().await?;
        for node in self.cluster.lab.nodes() {
            let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
            let request = ::http::Request::get(&path).body(Vec::new())?;
            let summary: Value = self.cluster.client.request(request).await?;
            for pod in summary["pods"].as_array().into_iter().flatten() {
                let name = pod["podRef"]["name"].as_str().unwrap_or_default();
                if !name.is_empty() && holder.starts_with(name) {
                    let rss = pod.pointer("/containers/0/memory/rssBytes").and_then(Value::as_u64);
                    return rss.context("the kubelet tells no memory");
                }
            }
        }
        bail!("no kubelet knows {holder}")
    }

    /// The name of the copy of a pod.
    pub(super) fn target_name(&self, source: &str, asked: &Value) -> String {
        if self.kind == Kind::StatefulSet && asked["migrationStrategy"] == "Sequential" {
            return source.to_owned();
        }
        target_name(Called { name: source, has_left: false, before: None })
    }

    /// What a trial has left, its migration included.
    pub(super) async fn leftovers(&self, migration: Option<&str>) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        let clean = wait_for("nothing to be left", Duration::from_secs(40), async || {
            left = scenario::leftovers(&self.cluster).await?;
            Ok(left.is_empty().then_some(()))
        });
        if clean.await.is_err() && left.is_empty() {
            left.push("unknown".to_owned());
        }
        if let Some(name) = migration
            && migrate::delete(&self.cluster, name).await.is_err()
        {
            left.push(format!("migration {name}"));
        }
        Ok(left)
    }

    /// What the operators say, for somebody who wants to know why.
    pub async fn operators_words(&self) -> String {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), "ms2m-system");
        let mut words = String::new();
        for pod in pods.list(&ListParams::default()).await.into_iter().flatten() {
            for previous in [true, false] {
                let params = LogParams { previous, ..LogParams::default() };
                if let Ok(log) = pods.logs(&pod.name_any(), &params).await {
                    let name = pod.name_any();
                    let _ = writeln!(words, "--- {name} (previous: {previous})\n{log}");
                }
            }
        }
        words
    }
}

/// The effects of one ordinary move by the operator with failpoints, as it calls them:
/// `checkpointing/freeze/0`, in order.
pub async fn effects_of_a_move(stage: &mut Stage) -> anyhow::Result<Vec<String>> {
    stage.prepare(Kind::Deployment, false).await?;
    let source = stage.cluster.pod_of("consumer").await?;
    let moved = scenario::move_pod(&stage.cluster, &source, &json!({}), |_| {}).await?;
    let words = stage.operators_words().await;
    let name = moved.object.name_any();
    let mut all = Vec::new();
    for line in words.lines().filter(|line| line.contains("failpoint") && line.contains(&name)) {
        let at = line.split("at=\"").nth(1).and_then(|rest| rest.split('"').next());
        let at = at.unwrap_or_default().to_owned();
        if line.contains("side=\"before\"") && !all.contains(&at) {
            all.push(at);
        }
    }
    Ok(all)
}
