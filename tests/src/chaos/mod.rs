//! Faults on the lab, under load: each in several phases of a migration, and once without one beside it.

mod fault;
mod happen;
mod heal;
mod judge;
mod soak;
mod stage;
mod verdict;

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shadow_api::StatefulMigration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub use fault::{End, Fault};
pub use soak::{Soak, Spell};
pub use stage::{Kind, Stage, effects_of_a_move};

use crate::cluster::Cluster;
use crate::migrate::{self, migrations, phase};
use crate::scenario::{self, Watched};
use happen::Scene;
use judge::Judged;

/// A migration that has not ended by then never will.
const PATIENCE: Duration = Duration::from_mins(8);
/// How often a fault is tried without a migration.
const CONTROLS: usize = 3;
/// How often the migration is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// For one look; a node may be gone.
const ANSWER: Duration = Duration::from_secs(1);
/// In the order in which a migration goes through them.
const PHASES: [&str; 7] = [
    "Pending",
    "Checkpointing",
    "Transferring",
    "Restoring",
    "Replaying",
    "Finalizing",
    "Completed",
];

/// What has come of one fault at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Row {
    /// What went wrong.
    pub fault: String,
    /// In which phase; absent: without a migration.
    pub phase: Option<String>,
    /// `pass`, or what is not as it should be.
    pub verdict: String,
    /// `Completed`, `Failed`, `Gone`; `control` where there was none.
    pub outcome: String,
    /// Why it failed, as its status says.
    pub message: String,
    /// It says that everything was undone, or it had never begun.
    #[serde(default)]
    pub undone: bool,
    /// The phase in which it went wrong.
    #[serde(default)]
    pub happened_in: String,
    /// From the migration's creation to its end.
    pub seconds: f64,
    /// Confirmed and never applied by whoever survives.
    pub lost: u64,
    /// Applied more than once.
    pub duplicated: u64,
    /// Applied after a later one of the same publisher.
    pub reordered: u64,
    /// Delivered more than once.
    pub redelivered: u64,
    /// Both applied and delivered more than once: the broker had not heard that it was applied.
    #[serde(default)]
    pub again: u64,
    /// Longest time in which messages waited and no copy applied one.
    pub pause_ms: u64,
    /// Probes without an answer.
    pub failed_probes: u64,
    /// What the first of them said.
    #[serde(default)]
    pub probe_errors: Vec<String>,
    /// The process that lives in the end is not the one of the beginning, or its copy.
    pub fresh: bool,
    /// What should be gone.
    pub leftovers: Vec<String>,
}

impl Row {
    /// Everything is as it should be.
    pub fn is_good(&self) -> bool {
        self.verdict == "pass"
    }

    /// By which it is found again.
    pub fn key(&self) -> (String, Option<String>) {
        (self.fault.clone(), self.phase.clone())
    }

    fn count(&mut self, judged: &Judged) {
        let m = &judged.messages;
        (self.lost, self.duplicated, self.reordered) = (m.lost, m.duplicated, m.reordered);
        (self.redelivered, self.again) = (m.redelivered, m.again);
        self.failed_probes = judged.failed_probes;
        (self.pause_ms, self.fresh) = (judged.pause_ms, judged.fresh);
        self.probe_errors.clone_from(&judged.probe_errors);
    }
}

/// One fault at one moment.
#[derive(Debug, Clone)]
pub struct Trial {
    /// What goes wrong.
    pub fault: Fault,
    /// In which phase; absent: without a migration.
    pub phase: Option<&'static str>,
    /// Of which application.
    pub kind: Kind,
    /// By agents, where the fault does not need them anyway.
    pub agents: bool,
    /// Fields of the migration's spec.
    pub asked: Value,
}

impl Trial {
    /// All of the table, controls first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for fault in Fault::all() {
            let control = fault.has_control().then_some(None);
            for phase in control.into_iter().chain(fault.phases().iter().copied().map(Some)) {
                all.push(Self::of(fault.clone(), phase));
            }
        }
        // What the broker's faults are to an application that forgets where it was told to be.
        let forgets =
            |it: &&Self| matches!(it.fault, Fault::BrokerRestarts | Fault::CopyCut(_, 90));
        let forgetful = all.iter().filter(forgets).cloned();
        let forgetful: Vec<Self> =
            forgetful.map(|it| Self { kind: Kind::Forgetful, ..it }).collect();
        all.extend(forgetful);
        // Those that take long come late; and those that need agents last, which are there from then on.
        let long = |it: &Fault| matches!(it, Fault::OperatorCut(90) | Fault::CopyCut(_, 90));
        all.sort_by_key(|it| (it.fault.needs_agents(), long(&it.fault)));
        all
    }

    /// A few of each sort, for every day: at most ten minutes.
    pub fn cut() -> Vec<Self> {
        let killed = |at: &str| Self::of(Fault::OperatorKilled(at.to_owned()), Some("Pending"));
        let soak = Soak { seed: 1, migrations: 3 };
        let mut all = vec![
            killed("before checkpointing/freeze/0"),
            killed("after restoring/beside/0"),
            killed("before finalizing/replace/0"),
            Self::of(Fault::BrokerRestarts, Some("Restoring")),
            Self::of(Fault::ApiServerAway, Some("Finalizing")),
            Self::of(Fault::ProcessKilled(End::Target), Some("Replaying")),
            Self::of(Fault::PowerOff(End::Target), Some("Restoring")),
            Self::of(Fault::RegistryFails, Some("Transferring")),
            Self::of(Fault::MigrationDeleted, Some("Checkpointing")),
            Self::of(Fault::MigrationForced, Some("Restoring")),
        ];
        all.extend((0..soak.migrations).map(|nth| soak.trial(nth)));
        all
    }

    /// An ordinary migration with this fault.
    pub fn of(fault: Fault, phase: Option<&'static str>) -> Self {
        let agents = fault.needs_agents();
        Self { fault, phase, kind: Kind::Deployment, agents, asked: json!({}) }
    }

    /// By which its row is found.
    pub fn key(&self) -> (String, Option<String>) {
        (self.name(), self.phase.map(str::to_owned))
    }

    fn name(&self) -> String {
        let forgetful = if self.kind == Kind::Forgetful { " (forgetful)" } else { "" };
        format!("{}{forgetful}", self.fault)
    }

    /// Tries it. `controls` are the rows so far. Where a fault has to do with deliveries, which is a matter of
    /// milliseconds, its control is tried several times, and the worst counts.
    pub async fn run(&self, stage: &mut Stage, controls: &[Row]) -> anyhow::Result<Row> {
        let mut row = Box::pin(self.run_once(stage, controls)).await?;
        for _ in 1..self.times() {
            let again = Box::pin(self.run_once(stage, controls)).await?;
            row.lost = row.lost.max(again.lost);
            row.duplicated = row.duplicated.max(again.duplicated);
            row.reordered = row.reordered.max(again.reordered);
            row.redelivered = row.redelivered.max(again.redelivered);
            row.again = row.again.max(again.again);
            row.pause_ms = row.pause_ms.max(again.pause_ms);
        }
        Ok(row)
    }

    fn times(&self) -> usize {
        let delivers = matches!(self.fault, Fault::BrokerRestarts | Fault::CopyCut(..));
        if self.phase.is_none() && delivers { CONTROLS } else { 1 }
    }

    async fn run_once(&self, stage: &mut Stage, controls: &[Row]) -> anyhow::Result<Row> {
        stage.prepare(self.kind, self.agents).await?;
        if let Fault::PowerOff(end) = self.fault {
            stage.load_stays_on(end).await?;
        }
        let begun = judge::Begun::now(&stage.cluster).await?;
        let scene = self.scene(stage, &begun).await?;
        let mut row = Row {
            fault: self.name(),
            phase: self.phase.map(str::to_owned),
            outcome: "control".to_owned(),
            ..Row::default()
        };
        let mut seen = Seen::new(&begun);
        let ending = matches!(self.fault, Fault::PodDeleted(End::Source));
        let listening = ending.then(|| tokio::spawn(begun.listen()));
        let generation = stage.generation().await?;
        let started = Instant::now();
        match &scene.migration {
            Some(name) => {
                self.create(&scene, name, stage).await?;
                seen = self.follow(&scene, name, seen).await?;
                (row.outcome, row.message) = (seen.outcome.clone(), seen.message.clone());
                row.undone = seen.undone;
                row.seconds = started.elapsed().as_secs_f64();
                row.happened_in.clone_from(&seen.happened_in);
            }
            None => scene.happen(&self.fault).await?,
        }
        // A node that was booted is another machine.
        stage.cluster = Cluster::connect().await?;
        listening.inspect(JoinHandle::abort);
        let judged = begun.judge(&stage.cluster, seen.watched.pause_ms).await?;
        row.leftovers = stage.leftovers(scene.migration.as_deref()).await?;
        let happened = match self.fault {
            Fault::OperatorKilled(_) => stage.generation().await? > generation,
            Fault::ClockJumps(_) => stage.operators_words().await.contains("the clock jumps"),
            _ => !matches!(row.happened_in.as_str(), "Completed" | "Failed"),
        };
        row.count(&judged);
        row.verdict = if happened {
            verdict::of(self, &row, controls)
        } else {
            "it did not happen".to_owned()
        };
        // What a node that was booted has to say to Services comes late.
        let booted = matches!(self.fault, Fault::PowerOff(_));
        stage.spoilt |= judged.fresh || booted || !row.is_good();
        stage.jumped |= matches!(self.fault, Fault::ClockJumps(_));
        Ok(row)
    }

    async fn scene(&self, stage: &Stage, begun: &judge::Begun) -> anyhow::Result<Scene> {
        let cluster = Cluster::connect().await?;
        let nodes = scenario::other_node(&cluster, &begun.source)?;
        let target = stage.target_name(&begun.source.name_any(), &self.asked);
        let migration = self.phase.map(|_| scenario::fresh_name());
        Ok(Scene { cluster, migration, source: begun.source.clone(), target, nodes })
    }

    async fn create(&self, scene: &Scene, name: &str, stage: &Stage) -> anyhow::Result<()> {
        let source = scene.source.name_any();
        let mut manifest = migrate::manifest(name, &source, &scene.nodes.1);
        for (field, value) in self.asked.as_object().into_iter().flatten() {
            manifest["spec"][field] = value.clone();
        }
        if self.fault.needs_agents() {
            manifest["spec"]["transferMode"] = json!("Direct");
        }
        let annotations = &mut manifest["metadata"]["annotations"];
        match &self.fault {
            Fault::OperatorKilled(at) => {
                let generation = stage.generation().await?;
                annotations["failpoint.ms2m.io/kill"] = json!(format!("{generation} {at}"));
            }
            Fault::ClockJumps(seconds) => {
                let place = match self.phase {
                    Some("Checkpointing") => "checkpointing/install/0",
                    Some("Restoring") => "restoring/order/0",
                    _ => "finalizing/open/0",
                };
                let by = seconds * 1_000;
                annotations["failpoint.ms2m.io/clock"] = json!(format!("{by} {place}"));
            }
            _ => {}
        }
        migrate::create(&scene.cluster, manifest).await
    }

    /// Follows the migration to its end; when it comes to the phase, it happens.
    async fn follow(&self, scene: &Scene, name: &str, mut seen: Seen) -> anyhow::Result<Seen> {
        let due = Notify::new();
        let happen = async {
            due.notified().await;
            scene.happen(&self.fault).await
        };
        let wanted = rank(self.phase.unwrap_or_default());
        let watch = async {
            let began = Instant::now();
            while seen.outcome.is_empty() {
                sleep(LOOK).await;
                if began.elapsed() > PATIENCE {
                    "Hung".clone_into(&mut seen.outcome);
                }
                let found = timeout(ANSWER, migrations(&scene.cluster).get_opt(name)).await;
                if let Ok(Ok(found)) = found
                    && let Some(phase) = seen.look(&scene.cluster, found).await
                    && rank(&phase) >= wanted
                {
                    if seen.happened_in.is_empty() {
                        seen.happened_in = phase;
                    }
                    due.notify_one();
                }
            }
            // Whoever waits for a phase that never came.
            due.notify_one();
        };
        let (happened, ()) = tokio::join!(happen, watch);
        happened.with_context(|| format!("let it happen: {}", self.fault))?;
        Ok(seen)
    }
}

/// What was seen while a migration went on.
struct Seen {
    happened_in: String,
    outcome: String,
    message: String,
    undone: bool,
    watched: Watched,
}

impl Seen {
    fn new(begun: &judge::Begun) -> Self {
        Self {
            happened_in: String::new(),
            outcome: String::new(),
            message: String::new(),
            undone: false,
            watched: Watched::of(&begun.url),
        }
    }

    /// Looks at the migration, if there is one, and gives its phase.
    async fn look(
        &mut self,
        cluster: &Cluster,
        found: Option<StatefulMigration>,
    ) -> Option<String> {
        let Some(object) = found else {
            "Gone".clone_into(&mut self.outcome);
            return None;
        };
        // Whoever can't be asked is asked again.
        let source = scenario::Source::default();
        let _ = timeout(ANSWER, self.watched.look(cluster, &object, &source)).await;
        if matches!(phase(&object), "Completed" | "Failed") {
            phase(&object).clone_into(&mut self.outcome);
            let status = object.status.clone().unwrap_or_default();
            let undone = |it: &Condition| it.type_ == "RolledBack" && it.status == "True";
            self.undone = status.conditions.iter().any(undone)
                || status.phase_timings.keys().all(|it| it == "Pending");
            self.message = status.message.unwrap_or_default();
        }
        Some(phase(&object)).filter(|phase| !phase.is_empty()).map(str::to_owned)
    }
}

fn rank(phase: &str) -> usize {
    let failed = if phase == "Failed" { PHASES.len() } else { 0 };
    PHASES.iter().position(|it| *it == phase).unwrap_or(failed)
}
