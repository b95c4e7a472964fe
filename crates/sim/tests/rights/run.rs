//! One migration under a role, of which a right may be missing for the first minutes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use serde_json::{Value, json};
use shadow_operator::clock;
use shadow_sim::kube::{Call, Kube};
use shadow_sim::log::Log;
use shadow_sim::shop::plan::{Fault, Plan};
use shadow_sim::shop::verdict::Verdict;
use shadow_sim::shop::{NAMESPACE, START, Shop, on_paused_time};

use crate::role::{Right, Role};

/// When whoever has read what was said applies the role, in milliseconds.
const GRANTED: u64 = 45_000;

/// A kind of migration.
#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    pub plan: Plan,
    /// It is given up.
    pub back: bool,
    /// What the user wishes besides.
    pub wishing: fn(&mut Value),
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.back { ", given up" } else { "" })
    }
}

impl Case {
    pub fn new(name: &'static str, plan: Plan) -> Self {
        Self { name, plan, back: false, wishing: |_| {} }
    }

    pub fn with(self, fault: Fault) -> Self {
        Self { plan: Plan { faults: vec![fault], ..self.plan }, ..self }
    }
}

/// What has been said at one moment.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// `status.message`
    pub status: String,
    /// The notes of all events.
    pub events: Vec<String>,
    /// The operators' log.
    pub log: String,
}

pub struct Outcome {
    pub verdict: Verdict,
    /// What was said before the right was granted, if that was needed.
    pub before: Option<Said>,
    /// And in the end.
    pub after: Said,
    pub used: BTreeSet<Right>,
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn said(&self, kube: &Kube) -> Said {
        let object = kube.get("statefulmigrations", NAMESPACE, "move");
        let message = object.map(|object| object["status"]["message"].clone());
        let notes = kube.all("events").into_iter().map(|event| event["note"].clone());
        let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
        Said {
            status: text(message.unwrap_or_default()),
            events: notes.map(text).collect(),
            // Quoted within quotes.
            log: String::from_utf8_lossy(&self.0.lock().unwrap()).replace('\\', ""),
        }
    }
}

/// Runs `case` under the role, without the right that is `missing` until it is granted.
pub fn run(case: &Case, role: &Role, missing: Option<&Right>) -> Outcome {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        on_paused_time(on_a_cluster(case, role, missing, lines))
    })
}

async fn on_a_cluster(case: &Case, role: &Role, missing: Option<&Right>, lines: Lines) -> Outcome {
    let used = Arc::new(Mutex::new(BTreeSet::new()));
    let rights = {
        let (used, whole, mut less) = (used.clone(), role.clone(), role.clone());
        less.0.retain(|right| Some(right) != missing);
        move |call: &Call| {
            let granted = clock::now().since(START) >= GRANTED;
            match if granted { &whole } else { &less }.judge(call) {
                Ok(rights) => {
                    used.lock().unwrap().extend(rights.into_iter().cloned());
                    None
                }
                Err(refusal) => Some(refusal),
            }
        }
    };
    let shop = Shop::open(&case.plan, Log::default()).await;
    let shop = shop.under(Arc::new(rights)).wishing(case.wishing);
    let kube = shop.kube.clone();
    kube.create(json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "rabbitmq", "namespace": NAMESPACE },
        "data": { "url": "YW1xcDovL2Jyb2tlcg==" },
    }))
    .expect("a Secret");
    let before = Arc::new(Mutex::new(None));
    let looks = {
        let (kube, lines, before) = (kube.clone(), lines.clone(), before.clone());
        let left = GRANTED.saturating_sub(clock::now().since(START) + 1);
        async move {
            tokio::time::sleep(Duration::from_millis(left)).await;
            *before.lock().unwrap() = Some(lines.said(&kube));
        }
    };
    let looks = tokio::spawn(looks);
    let verdict = shop.migrate().await;
    looks.abort();
    // Who has ended by then has needed no grant.
    let before = before.lock().unwrap().take().filter(|_| verdict.at >= GRANTED);
    let used = used.lock().unwrap().clone();
    Outcome { verdict, before, after: lines.said(&kube), used }
}
