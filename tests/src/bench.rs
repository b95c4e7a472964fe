//! What it costs to carry a checkpoint: sizes and ways, side by side on one lab.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::migrate::{self, phase};
use crate::scenario;
use crate::workload::Workload;

/// How a checkpoint is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Way {
    /// Through the registry, pushed by a Job.
    RegistryByJob,
    /// Through the registry, pushed by the source node's agent.
    RegistryByAgent,
    /// To the target node's agent, sent by a Job.
    DirectByJob,
    /// From agent to agent.
    DirectByAgent,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::RegistryByJob, Self::RegistryByAgent, Self::DirectByJob, Self::DirectByAgent];

    fn asked(self) -> Value {
        match self {
            Self::RegistryByJob | Self::RegistryByAgent => json!({}),
            Self::DirectByJob | Self::DirectByAgent => {
                json!({ "transferMode": "Direct", "checkpointImageRepository": null })
            }
        }
    }

    async fn place_agents(self, cluster: &Cluster, target: &str) -> anyhow::Result<()> {
        match self {
            Self::RegistryByJob => cluster.remove_agents().await,
            Self::DirectByJob => cluster.install_agents(&[target.to_owned()]).await,
            _ => cluster.install_agents(&cluster.lab.nodes()).await,
        }
    }
}

/// One move.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Size of the archive in bytes.
    pub archive_bytes: u64,
    /// From the checkpoint written to the checkpoint arrived, in milliseconds, as the operator sees it.
    pub transfer_ms: u64,
    /// From the target pod created to its container running, by the API server's watch.
    pub restore_ms: u64,
    /// From the checkpoint written to the container running.
    pub whole_ms: u64,
    /// Bytes that agent and runtime caused to be written, by node and program.
    pub written: BTreeMap<String, u64>,
    /// The most memory of an agent, by node, in bytes; of the Job's program under `job`.
    pub peak_memory: BTreeMap<String, u64>,
}

/// Medians of some moves.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Megabytes of memory that the consumer carried along.
    pub ballast_mb: u32,
    /// How.
    pub way: Way,
    /// The median by the whole time.
    pub median: Sample,
    /// All of them.
    pub samples: Vec<Sample>,
}

/// Moves a bare pod with so much ballast so many `times`.
pub async fn run(
    cluster: &Cluster,
    way: Way,
    ballast_mb: u32,
    times: usize,
) -> anyhow::Result<Row> {
    migrate::delete_all(cluster).await?;
    Workload::remove(cluster).await?;
    let workload = Workload { bare: true, ballast_mb, probe: false, ..Workload::default() };
    workload.deploy(cluster).await?;
    let mut samples = Vec::new();
    for _ in 0..times {
        samples.push(once(cluster, way, &workload).await?);
    }
    let mut sorted = samples.clone();
    sorted.sort_by_key(|sample: &Sample| sample.whole_ms);
    let median = sorted.swap_remove(times / 2);
    Ok(Row { ballast_mb, way, median, samples })
}

async fn once(cluster: &Cluster, way: Way, workload: &Workload) -> anyhow::Result<Sample> {
    let source = cluster.pod_of("consumer").await?;
    let (_, target_node) = scenario::other_node(cluster, &source)?;
    way.place_agents(cluster, &target_node).await?;
    let mut asked = way.asked();
    asked["messageQueueConfig"] = workload.queue_config();
    let pods = Watching::begin(cluster);
    let before = Programs::look(cluster, true)?;
    let mut phases: BTreeMap<String, Instant> = BTreeMap::new();
    let moved = scenario::move_pod(cluster, &source, &asked, |object| {
        phases.entry(phase(object).to_owned()).or_insert_with(Instant::now);
    });
    let moved = moved.await?;
    let status = moved.object.status.clone().unwrap_or_default();
    ensure!(phase(&moved.object) == "Completed", "{way:?}: {:?}", status.message);
    let after = Programs::look(cluster, false)?;
    let target = status.target_pod.context("a target pod")?;
    let at = |name: &str| phases.get(name).copied().with_context(|| format!("phase {name}"));
    let (written, arrived) = (at("Transferring")?, at("Restoring")?);
    let (created, running) = pods.times_of(&target).context("the target was not seen")?;
    let mut peak_memory = after.peaks;
    peak_memory.extend(pods.job_peak().map(|peak| ("job".to_owned(), peak)));
    Ok(Sample {
        archive_bytes: status.checkpoint_bytes.unwrap_or(0),
        transfer_ms: millis(arrived - written),
        restore_ms: millis(running - created),
        whole_ms: millis(running - written),
        written: after
            .written
            .into_iter()
            .map(|(who, bytes)| (who.clone(), bytes - before.written.get(&who).unwrap_or(&0)))
            .collect(),
        peak_memory,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// When pods were first seen, and first seen running; what a Job's pod said in the end.
struct Watching {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    times: BTreeMap<String, (Instant, Option<Instant>)>,
    job_peak: Option<u64>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    fn begin(cluster: &Cluster) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (told, pods) = (seen.clone(), cluster.pods());
        let task = tokio::spawn(async move {
            let events = watcher(pods, watcher::Config::default()).default_backoff();
            let mut pods = std::pin::pin!(events.applied_objects());
            while let Some(pod) = pods.next().await {
                if let Ok(pod) = pod {
                    told.lock().unwrap_or_else(PoisonError::into_inner).note(&pod);
                }
            }
        });
        Self { seen, task }
    }

    fn times_of(&self, pod: &str) -> Option<(Instant, Instant)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (created, running) = seen.times.get(pod)?;
        Some((*created, (*running)?))
    }

    fn job_peak(&self) -> Option<u64> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).job_peak
    }
}

impl Seen {
    fn note(&mut self, pod: &Pod) {
        let now = Instant::now();
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        let states: Vec<_> =
            statuses.into_iter().flatten().filter_map(|it| it.state.as_ref()).collect();
        let times = self.times.entry(pod.name_any()).or_insert((now, None));
        if times.1.is_none() && states.iter().any(|state| state.running.is_some()) {
            times.1 = Some(now);
        }
        let ended = states.iter().filter_map(|state| state.terminated.as_ref()?.message.as_deref());
        for message in ended {
            let said: Value = serde_json::from_str(message).unwrap_or_default();
            self.job_peak = said["peakBytes"].as_u64().or(self.job_peak);
        }
    }
}

/// Agent and runtime on every node.
struct Programs {
    written: BTreeMap<String, u64>,
    peaks: BTreeMap<String, u64>,
}

/// `program pid write_bytes VmHWM`, a line each. `5` in `clear_refs` resets the latter.
const LOOK: &str = r#"for p in /proc/[0-9]*; do
  case "$(tr '\0' ' ' < $p/cmdline 2>/dev/null)" in
    "/shadow run agent"*) n=agent ;; *crio*--config*|*/crio\ *) n=crio ;; *) continue ;;
  esac
  [ "$1" = reset ] && echo 5 > $p/clear_refs
  echo $n $(awk '/^write_bytes/ {print $2}' $p/io) $(awk '/^VmHWM/ {print $2}' $p/status)
done"#;

impl Programs {
    fn look(cluster: &Cluster, reset: bool) -> anyhow::Result<Self> {
        let (mut written, mut peaks) = (BTreeMap::new(), BTreeMap::new());
        for node in cluster.lab.nodes() {
            let how = if reset { "reset" } else { "" };
            let lines = cluster.lab.exec(&node, &["sh", "-c", LOOK, "look", how])?;
            for line in lines.lines() {
                let mut words = line.split_whitespace();
                let (Some(program), Some(bytes), Some(peak)) =
                    (words.next(), words.next(), words.next())
                else {
                    continue;
                };
                *written.entry(format!("{node} {program}")).or_insert(0) += bytes.parse::<u64>()?;
                if program == "agent" {
                    peaks.insert(node.clone(), peak.parse::<u64>()? * 1024);
                }
            }
        }
        Ok(Self { written, peaks })
    }
}
