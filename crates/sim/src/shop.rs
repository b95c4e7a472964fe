//! The operator's own loop, end to end, on a cluster and a broker in memory: the real
//! `shadow_operator::run` moves a consumer while publishers publish and things go wrong.
//!
//! ```text
//! shadow_operator ──► kube      the API server, controllers and kubelets
//!        │              │
//!        │              ▼ starts, stops, checkpoints
//!        └──────────► applications ──► MemoryBroker ◄── publishers
//! ```
//!
//! Time is tokio's, paused: it passes only while everybody waits. The same plan is the same run.

mod applications;
pub mod campaign;
mod faults;
pub mod plan;
mod stage;
pub mod verdict;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use shadow_broker::memory::{self, Call, MemoryConnector};
use shadow_operator::settings::Options;
use shadow_operator::{Outside, clock};
use shadow_protocol::phase::State;
use shadow_protocol::time::Time;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::kube::{self, Config, Kube, NoFaults, Refusal};
use crate::log::Log;
use applications::Applications;
use plan::{Fault, Plan};
use verdict::Verdict;

pub use stage::{NAMESPACE, wish};

/// The moment the runs begin at: 2026-01-01T00:00:00Z.
pub const START: Time = Time(1_767_225_600_000);
/// A migration that has not ended by then never will.
const PATIENCE: Duration = Duration::from_hours(2);
/// How often the janitor comes, where there is one.
const JANITOR: Duration = Duration::from_secs(2);
/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(100);
/// The successor of an operator that was killed has tidied up by then.
const ABANDONED: Duration = Duration::from_mins(1);
/// The cluster comes to rest after the end.
const SETTLED: Duration = Duration::from_mins(1);

/// Says no to a request that its sender may not make.
pub type Rights = Arc<dyn Fn(&kube::Call) -> Option<Refusal> + Send + Sync>;

/// Everything there is. Clones are the same one.
#[derive(Clone)]
pub struct Shop {
    /// The cluster.
    pub kube: Kube,
    /// What runs in it.
    pub applications: Applications,
    /// The pod that is to move.
    pub source: String,
    /// Its UID.
    source_uid: Value,
    plan: Arc<Plan>,
    rights: Rights,
    wishing: fn(&mut Value),
    notes: Arc<Mutex<Notes>>,
}

/// What is kept for the verdict.
#[derive(Debug, Default)]
struct Notes {
    log: Log,
    excuses: verdict::Excuses,
    violations: Vec<String>,
    /// When pods have died by a fault.
    died: BTreeMap<String, Time>,
    /// Names of the operators that have been started.
    operators: Vec<String>,
    /// And of those that don't reach the API server.
    isolated: Vec<String>,
    /// Those that run.
    working: Vec<JoinHandle<()>>,
    /// Until then a webhook that everybody must ask does not answer.
    silent_until: u64,
}

/// Runs a plan.
pub fn run(plan: &Plan) -> Verdict {
    on_paused_time(async { Shop::open(plan, Log::default()).await.migrate().await })
}

/// Runs a plan and keeps its log.
pub fn run_logged(plan: &Plan) -> Verdict {
    on_paused_time(async { Shop::open(plan, Log::kept()).await.migrate().await })
}

/// Runs `work` on this thread, on a clock that passes only while everybody waits.
///
/// # Panics
///
/// If the machine has no room for a runtime.
#[expect(clippy::expect_used, reason = "a runtime of one thread needs nothing from the machine")]
pub fn on_paused_time<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let _clock = clock::follow(START);
        work.await
    })
}

impl Shop {
    /// Two nodes and the workload, up and running, the operator not yet.
    pub async fn open(plan: &Plan, log: Log) -> Self {
        let applications = Applications::new(&plan.scenario);
        let mut config = Config { seed: plan.scenario.seed, ..Config::default() };
        config.kubelet.start = Duration::from_millis(plan.scenario.start);
        config.reaction = Duration::from_millis(plan.reaction);
        let kube = Kube::new(config, Box::new(applications.clone()));
        let controllers = kube.clone();
        tokio::spawn(async move { controllers.run().await });
        let source = stage::set_up(&kube, &plan.scenario).await;
        let found = kube.get("pods", NAMESPACE, &source);
        let source_uid = found.map(|pod| pod["metadata"]["uid"].clone()).unwrap_or_default();
        applications.begun().await;
        let notes = Arc::new(Mutex::new(Notes { log, ..Notes::default() }));
        Self {
            kube,
            applications,
            source,
            source_uid,
            plan: Arc::new(plan.clone()),
            rights: Arc::new(|_| None),
            wishing: |_| {},
            notes,
        }
    }

    /// Operators may do only what `rights` lets pass.
    #[must_use]
    pub fn under(self, rights: Rights) -> Self {
        Self { rights, ..self }
    }

    /// The user wishes something else besides.
    #[must_use]
    pub fn wishing(self, wishing: fn(&mut Value)) -> Self {
        Self { wishing, ..self }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Nothing panics half-way through a change.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, text: impl FnOnce() -> String) {
        self.notes().log.note(clock::now().since(START), text);
    }

    /// An operator whose requests are `client`'s, for as long as nobody aborts it.
    pub fn operator(&self, client: &str) -> JoinHandle<()> {
        let outside = Outside {
            client: self.kube.client(client),
            connector: Arc::new(MemoryConnector(self.applications.broker.clone())),
            registry: Arc::new(stage::Open),
            agents: None,
        };
        let options = Options {
            transfer_image: "shadow:1".into(),
            no_probe: true,
            janitor_every: self.plan.janitor.then_some(JANITOR),
            identity: Some(client.to_owned()),
            ..Options::default()
        };
        let shop = self.clone();
        tokio::spawn(async move {
            let ended = shadow_operator::run(outside, options, std::future::pending()).await;
            shop.notes().violations.push(format!("the operator ended by itself: {ended:?}"));
        })
    }

    fn start_operator(&self) {
        let name = format!("operator-{}", self.notes().operators.len());
        let works = self.operator(&name);
        let mut notes = self.notes();
        notes.operators.push(name);
        notes.working.push(works);
    }

    fn end_operators(&self) {
        for operator in self.notes().working.drain(..) {
            operator.abort();
        }
    }

    /// The state of a migration as stored, if it has one.
    fn state(&self, name: &str) -> Option<State> {
        let object = self.kube.get("statefulmigrations", NAMESPACE, name)?;
        serde_json::from_value(object["status"]["state"].clone()).ok()
    }

    /// Asks for the migration, lets happen what is planned, and looks at what has come of it.
    pub async fn migrate(self) -> Verdict {
        self.applications.pile_up();
        for publisher in 0..usize::from(self.plan.scenario.publishers) {
            tokio::spawn(self.applications.clone().publish_on(publisher));
        }
        let mut kills = self.plan_faults();
        self.start_operator();
        let mut wish = wish(&self.source, "move", &self.plan.scenario);
        (self.wishing)(&mut wish);
        if let Err(refusal) = self.kube.create(wish) {
            self.notes().violations.push(format!("the wish was refused: {refusal}"));
        }
        let killed = async {
            while let Some(away) = kills.recv().await {
                self.note(|| format!("the operator is killed, and away for {away} ms"));
                self.end_operators();
                sleep(Duration::from_millis(away)).await;
                self.start_operator();
            }
            std::future::pending::<()>().await;
        };
        if self.plan.janitor {
            stage::leave_a_trace(&self.kube, &self.source, &self.plan.scenario);
        }
        let end = async {
            self.ended().await;
            if self.is_abandoned() {
                sleep(ABANDONED).await;
            }
            if self.is_orphaned() {
                self.tidied_up().await;
            }
        };
        let ended = tokio::select! {
            biased;
            ended = timeout(PATIENCE, end) => ended.is_ok(),
            () = killed => false,
        };
        if !ended {
            let phase = self.state("move").map(|state| format!("{:?}", state.phase.step()));
            self.notes().violations.push(format!("no end after {PATIENCE:?}, in {phase:?}"));
        }
        let at = clock::now().since(START);
        self.rest().await;
        // Who is killed after the end lets go of the broker, too.
        while kills.try_recv().is_ok() {
            self.end_operators();
            sleep(LOOK).await;
        }
        self.end_operators();
        self.let_go();
        Verdict::of(&self, at)
    }

    /// Nobody knows any more how far the migration was.
    fn is_abandoned(&self) -> bool {
        self.plan.faults.iter().any(|fault| matches!(fault, Fault::Abandoned(_)))
    }

    /// Somebody has removed the object, and the operator lives.
    fn is_orphaned(&self) -> bool {
        let orphans = |it: &Fault| matches!(it, Fault::Forced(_) | Fault::Recreated(_));
        self.plan.faults.iter().any(orphans)
    }

    /// Who decides about requests and calls holds the shop, and the shop them: neither would ever be
    /// freed.
    fn let_go(&self) {
        self.kube.set_faults(Box::new(NoFaults));
        self.applications.broker.set_hook(Arc::new(|_: &Call<'_>| memory::Fault::Pass));
    }

    /// Until every migration has come to its end.
    async fn ended(&self) {
        let mut changes = self.kube.changes();
        let mut step = None;
        loop {
            changes.borrow_and_update();
            let state = self.state("move");
            let now = state.as_ref().map(|state| state.phase.step());
            if now != step {
                if let Some(state) = &state {
                    self.switches(state);
                }
                self.note(|| format!("=> {now:?}"));
                step = now;
            }
            let over = |object: &Value| {
                let phase = object["status"]["phase"].as_str();
                matches!(phase, Some("Completed" | "Failed"))
                    && object["metadata"]["deletionTimestamp"].is_null()
            };
            if self.kube.all("statefulmigrations").iter().all(|object| over(object)) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Until nothing of a migration is left whose object does not tell.
    async fn tidied_up(&self) {
        while !verdict::left_over(self).is_empty() {
            sleep(LOOK).await;
        }
    }

    /// Nobody publishes any more, and what is left is applied.
    async fn rest(&self) {
        self.applications.works().closed = true;
        sleep(SETTLED).await;
        let mut before = None;
        while !self.applications.at_rest() {
            let now = self.applications.ledgers();
            // Nobody gets on with it.
            if before.as_ref() == Some(&now) {
                return;
            }
            before = Some(now);
            sleep(SETTLED).await;
        }
    }

    /// The user says that it is enough.
    fn abort(&self) {
        self.kube.store(|store| {
            let key = crate::kube::Key::new("statefulmigrations", NAMESPACE, "move");
            store.modify(&key, |object| object["spec"]["abort"] = json!(true));
        });
    }
}
