//! What `cargo xtask e2e` runs: kinds of workloads and ways to move them, one row each.

use anyhow::{Context, ensure};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::{Value, json};

use crate::broker;
use crate::cluster::Cluster;
use crate::migrate::{self, phase};
use crate::report::Report;
use crate::scenario;
use crate::workload::Workload;

/// A workload and how one of its pods is moved.
pub struct Case {
    /// What is said of it.
    pub name: &'static str,
    workload: Workload,
    /// The pod; absent: any of the workload's, and from then on the same one.
    pod: Option<&'static str>,
    /// Fields of the migration's spec.
    asked: Value,
    /// The mode that is expected where none is asked for.
    expected: Option<&'static str>,
    /// So many messages wait when it begins.
    backlog: u64,
    /// Where node agents are.
    agents: Agents,
    /// It is refused with this reason, and nothing is touched.
    refused: Option<&'static str>,
}

/// Where node agents are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Agents {
    Nowhere,
    /// On the target's node only.
    Target,
    Everywhere,
}

/// One row of the table: medians of the times, sums of the rest.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The case's name.
    pub case: &'static str,
    /// What went wrong on purpose.
    pub fault: Option<String>,
    /// In which phase.
    pub phase: Option<String>,
    /// Completed or Failed.
    pub outcome: String,
    /// Whether everything is as it should be.
    pub result: &'static str,
    /// Moves.
    pub times: usize,
    /// See `docs/figures.md`.
    pub total_s: f64,
    /// By the probe.
    pub downtime_ms: u64,
    /// Messages waited and nobody applied one.
    pub pause_ms: u64,
    /// Confirmed and never applied.
    pub lost: u64,
    /// Applied more than once.
    pub duplicated: u64,
    /// Applied after a later one.
    pub reordered: u64,
    /// Delivered more than once.
    pub redelivered: u64,
    /// Probes without an answer.
    pub failed_probes: u64,
    /// What should be gone.
    pub leftovers: Vec<String>,
}

fn case(name: &'static str, workload: Workload, asked: Value) -> Case {
    let (pod, expected, backlog, agents, refused) = (None, None, 0, Agents::Nowhere, None);
    Case { name, workload, pod, asked, expected, backlog, agents, refused }
}

/// Kinds of workloads, and who the pod is afterwards.
pub fn identity() -> Vec<Case> {
    let bare = || Workload { bare: true, ..Workload::default() };
    let deployment = |replicas| Workload { replicas, ..Workload::default() };
    let set = |replicas| Workload { stateful_set: true, replicas, ..Workload::default() };
    let shadow = || json!({ "migrationStrategy": "ShadowPod" });
    let sequential = || json!({ "migrationStrategy": "Sequential" });
    let swap = |mode| json!({ "migrationStrategy": "ShadowPod", "identitySwapMode": mode });
    let ordinal = |name, pod| Case { pod: Some(pod), ..case(name, set(3), sequential()) };
    let leaves = Case {
        pod: Some("consumer-2"),
        ..case("StatefulSet of 3, last, ShadowPod", set(3), shadow())
    };
    vec![
        case("bare pod, ShadowPod", bare(), shadow()),
        case("Deployment of 1, ShadowPod", deployment(1), shadow()),
        case("Deployment of 3, ShadowPod", deployment(3), shadow()),
        case("StatefulSet of 1, Sequential", set(1), sequential()),
        ordinal("StatefulSet of 3, first, Sequential", "consumer-0"),
        ordinal("StatefulSet of 3, middle, Sequential", "consumer-1"),
        ordinal("StatefulSet of 3, last, Sequential", "consumer-2"),
        leaves,
        case("StatefulSet of 1, ShadowPod, ExchangeFence", set(1), swap("ExchangeFence")),
        case("StatefulSet of 1, ShadowPod, Cutoff", set(1), swap("Cutoff")),
    ]
}

/// Ways to hand over, kinds of queues and exchanges.
pub fn modes() -> Vec<Case> {
    let plain = Workload::default;
    let remembers = || Workload { remember: true, ..Workload::default() };
    let mode = |mode| json!({ "replayMode": mode });
    let fed_by = |exchange_type| Workload { exchange_type, ..Workload::default() };
    let parked = |exchange_type| Workload { exchange_type, ..remembers() };
    let quorum = || Workload { queue_type: "quorum", ..Workload::default() };
    // Slower than its feed.
    let slow = || Workload { rate: 200, service_ms: 10, ..remembers() };
    let two = |queue_type| Workload { replicas: 2, shared: true, queue_type, ..remembers() };
    let expecting = |mode, case| Case { expected: Some(mode), ..case };
    vec![
        case("Cutoff, classic, fanout", plain(), mode("Cutoff")),
        case("Drain, classic, fanout", plain(), mode("Drain")),
        case("Park, classic, fanout", remembers(), mode("Park")),
        case("Cutoff, quorum, fanout", quorum(), mode("Cutoff")),
        case("Cutoff, classic, direct", fed_by("direct"), mode("Cutoff")),
        case("Cutoff, classic, topic", fed_by("topic"), mode("Cutoff")),
        case("Cutoff, classic, headers", fed_by("headers"), mode("Cutoff")),
        case("Park, quorum, fanout", Workload { remember: true, ..quorum() }, mode("Park")),
        case("Park, consistent hash", parked("x-consistent-hash"), mode("Park")),
        expecting("Park", case("Auto, default exchange", parked("default"), json!({}))),
        expecting("Replay/Cutoff", case("Auto, which replays", remembers(), json!({}))),
        expecting("Park", Case { backlog: 2_000, ..case("Auto, deep backlog", slow(), json!({})) }),
        expecting("Park", case("Auto, classic, two consumers", two("classic"), json!({}))),
        expecting("Park", case("Auto, quorum, two consumers", two("quorum"), json!({}))),
    ]
}

/// From node to node, without a registry.
pub fn direct() -> Vec<Case> {
    let direct = |name, workload, mut asked: Value| {
        asked["transferMode"] = json!("Direct");
        asked["checkpointImageRepository"] = Value::Null;
        Case { agents: Agents::Everywhere, ..case(name, workload, asked) }
    };
    let bare = || Workload { bare: true, ..Workload::default() };
    let set = |replicas| Workload { stateful_set: true, replicas, ..Workload::default() };
    let shadow = || json!({ "migrationStrategy": "ShadowPod" });
    let sequential = || json!({ "migrationStrategy": "Sequential" });
    let swap = |mode| json!({ "migrationStrategy": "ShadowPod", "identitySwapMode": mode });
    let last = |case| Case { pod: Some("consumer-2"), ..case };
    let with = |agents, case| Case { agents, ..case };
    vec![
        direct("bare pod, ShadowPod", bare(), shadow()),
        direct("Deployment of 1, ShadowPod", Workload::default(), shadow()),
        direct("StatefulSet of 1, Sequential", set(1), sequential()),
        last(direct("StatefulSet of 3, last, Sequential", set(3), sequential())),
        last(direct("StatefulSet of 3, last, ShadowPod", set(3), shadow())),
        direct("StatefulSet of 1, ShadowPod, ExchangeFence", set(1), swap("ExchangeFence")),
        direct("StatefulSet of 1, ShadowPod, Cutoff", set(1), swap("Cutoff")),
        with(Agents::Target, direct("bare pod, agent on the target only", bare(), shadow())),
        Case {
            refused: Some("TargetNodeRefuses"),
            ..with(Agents::Nowhere, direct("bare pod, no agents", bare(), shadow()))
        },
        with(Agents::Everywhere, case("bare pod, Registry by agent", bare(), shadow())),
    ]
}

impl Case {
    async fn place_agents(&self, cluster: &Cluster, target: &str) -> anyhow::Result<()> {
        match self.agents {
            Agents::Nowhere => cluster.remove_agents().await,
            Agents::Target => cluster.install_agents(&[target.to_owned()]).await,
            Agents::Everywhere => cluster.install_agents(&cluster.lab.nodes()).await,
        }
    }

    /// Moves the pod so many `times`, there and back, under one load.
    pub async fn run(&self, cluster: &Cluster, times: usize) -> anyhow::Result<Row> {
        migrate::delete_all(cluster).await?;
        Workload::remove(cluster).await?;
        self.workload.deploy(cluster).await?;
        if self.backlog > 0 {
            broker::wait_backlog(cluster, "app.events", self.backlog).await?;
        }
        let mut row = Row::new(self.name, times);
        let (mut totals, mut pauses, mut downtimes) = (Vec::new(), Vec::new(), Vec::new());
        let mut pod = self.pod.map(str::to_owned);
        let mut last = None;
        for _ in 0..times {
            let others = cluster.pods_of("consumer").await?;
            let first = || others.first().map(ResourceExt::name_any);
            let name = pod.or_else(first).context("no consumer")?;
            let source = cluster.pods().get(&name).await?;
            let (_, target) = scenario::other_node(cluster, &source)?;
            self.place_agents(cluster, &target).await?;
            scenario::reset_probe(cluster).await?;
            let moved = scenario::move_pod(cluster, &source, &self.asked_of(), |_| {}).await?;
            let status = moved.object.status.clone().unwrap_or_default();
            phase(&moved.object).clone_into(&mut row.outcome);
            if let Some(reason) = self.refused {
                let why = format!("{:?}", status.conditions);
                ensure!(row.outcome == "Failed" && why.contains(reason), "{}: {why}", self.name);
                row.result = "pass";
                row.leftovers = scenario::left_in_the_end(cluster).await;
                return Ok(row);
            }
            ensure!(row.outcome == "Completed", "{}: {:?}", self.name, status.message);
            let mode = status.handoff.and_then(|handoff| handoff.mode);
            let expected = self.expected.is_none_or(|it| mode.as_deref() == Some(it));
            ensure!(expected, "{}: mode {mode:?}", self.name);
            scenario::others_untouched(cluster, &others, &name).await?;
            row.leftovers.extend(scenario::left_in_the_end(cluster).await);
            if let Some(probe) = scenario::probe(cluster).await? {
                downtimes.push(probe.downtime_ms);
                row.failed_probes += probe.failed;
            }
            totals.push(moved.total_s()?);
            pauses.push(moved.pause_ms);
            pod = status.target_pod;
            last = Some(moved);
        }
        let report = scenario::settle(cluster, &last.context("no move")?).await?;
        totals.sort_by(f64::total_cmp);
        row.total_s = totals[times / 2];
        (row.pause_ms, row.downtime_ms) = (median(pauses), median(downtimes));
        Ok(row.judged(&report, self.asked["migrationStrategy"] == "Sequential"))
    }

    fn asked_of(&self) -> Value {
        let mut asked = self.asked.clone();
        asked["messageQueueConfig"] = self.workload.queue_config();
        asked
    }
}

impl Row {
    fn new(case: &'static str, times: usize) -> Self {
        Self {
            case,
            fault: None,
            phase: None,
            outcome: String::new(),
            result: "",
            times,
            total_s: 0.0,
            downtime_ms: 0,
            pause_ms: 0,
            lost: 0,
            duplicated: 0,
            reordered: 0,
            redelivered: 0,
            failed_probes: 0,
            leftovers: Vec::new(),
        }
    }

    fn judged(mut self, report: &Report, makes_room: bool) -> Self {
        let m = &report.messages;
        (self.lost, self.duplicated) = (m.lost, m.duplicated);
        (self.reordered, self.redelivered) = (m.reordered, m.redelivered);
        let zeros = m.lost + m.duplicated + m.reordered + m.republished + m.returned == 0;
        let seamless = makes_room || self.failed_probes == 0;
        let good = zeros && seamless && self.leftovers.is_empty() && report.state_continued;
        self.result = if good { "pass" } else { "fail" };
        self
    }

    /// Nothing lost, nothing left, the same process.
    pub fn is_good(&self) -> bool {
        self.result == "pass"
    }
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}
