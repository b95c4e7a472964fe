//! What has come of a run: the invariants of `docs/handoff.md`, with the excuses of the
//! protocol-level world.

mod abandoned;

use serde_json::Value;
use shadow_broker::memory::core::Destination;
use shadow_protocol::names::control_queue;

use super::Shop;
use super::stage::{NAMESPACE, NODES};
use crate::application::Ledger;
use crate::kube::condition;
use crate::message::Message;
use crate::scenario::OwnerKind;
use crate::verdict::missing;
use crate::world::QUEUE;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Completed, why it failed, or `Gone` when the object was deleted.
    pub end: String,
    /// When, in simulated milliseconds since the run began.
    pub at: u64,
    /// Requests to the API server.
    pub requests: u64,
    /// What is left in the cluster, and who has applied how much.
    pub left: Vec<String>,
    /// What must not be, a sentence each.
    pub violations: Vec<String>,
    /// What happened, if it was kept.
    pub log: Vec<String>,
}

/// What has happened that would harm messages without a migration, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Excuses {
    /// A process has died with its state: a fresh one goes on.
    pub bereaved: bool,
    /// The one that has the state has died after the commit point.
    pub forgiven: bool,
    /// Somebody has gone to its own queue, or bound it again, when it connected.
    pub strayed: bool,
    /// What was returned to a queue overtakes what is in the next.
    pub overtaken: bool,
    /// Somebody else consumed the queue.
    pub intruded: bool,
    /// Deliveries trailed.
    pub flooded: bool,
}

impl Verdict {
    pub(super) fn of(shop: &Shop, at: u64) -> Self {
        let excuses = shop.notes().excuses;
        let mut violations = std::mem::take(&mut shop.notes().violations);
        if shop.is_abandoned() {
            violations.extend(abandoned::violations(shop));
        } else if violations.is_empty() {
            violations.extend(cluster(shop, excuses));
            violations.extend(broker(shop, excuses));
            violations.extend(messages(shop, excuses));
        }
        let log = std::mem::take(&mut shop.notes().log).into_lines();
        let requests = shop.kube.requests();
        Self { end: end(shop), at, requests, left: left(shop), violations, log }
    }
}

fn end(shop: &Shop) -> String {
    let Some(object) = shop.kube.get("statefulmigrations", NAMESPACE, "move") else {
        return "Gone".to_owned();
    };
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    let message = object["status"]["message"].as_str().unwrap_or_default();
    match (phase, message.split_once(':')) {
        ("Failed", Some((reason, _))) => reason.to_owned(),
        _ => phase.to_owned(),
    }
}

fn left(shop: &Shop) -> Vec<String> {
    let mut left: Vec<String> = Vec::new();
    for plural in ["pods", "jobs", "replicasets", "statefulmigrations"] {
        left.extend(shop.kube.all(plural).iter().map(ToString::to_string));
    }
    let ledgers = shop.applications.ledgers();
    left.extend(ledgers.iter().map(|(pod, ledger)| format!("{pod}: {ledger:?}")));
    left
}

/// Exactly one pod, its owner's, Ready, where it should be; and nothing of the migration.
fn cluster(shop: &Shop, excuses: Excuses) -> Vec<String> {
    let mut found = of_migrations(shop);
    found.extend(deployment(shop, excuses));
    // A moved pod that has ended stays listed, as an evicted one does (docs/adr/0001).
    let ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Failed"));
    let pods: Vec<_> = shop.kube.all("pods").into_iter().filter(|pod| !ended(pod)).collect();
    let left = has_left(shop);
    let bare = shop.plan.scenario.owner == OwnerKind::Bare || left;
    let [pod] = pods.as_slice() else {
        // A bare pod that was deleted by somebody stays away.
        if !(pods.is_empty() && bare && (excuses.bereaved || excuses.forgiven)) {
            let names: Vec<&Value> = pods.iter().map(|pod| &pod["metadata"]["name"]).collect();
            found.push(format!("the pods {names:?} are left"));
        }
        return found;
    };
    if !condition(pod, "Ready") {
        found.push(format!("the pod is not Ready: {}", pod["status"]));
    }
    if !pod["metadata"]["finalizers"].is_null() {
        found.push(format!("the pod is held: {}", pod["metadata"]));
    }
    let owned = !pod["metadata"]["ownerReferences"].is_null();
    if owned == bare {
        found.push(format!("the pod's owner: {}", pod["metadata"]));
    }
    let completed = |name: &str| {
        let object = shop.kube.get("statefulmigrations", NAMESPACE, name);
        object.is_some_and(|object| object["status"]["phase"] == "Completed")
    };
    let moved = completed("move") || completed("move-2");
    // The nodes take turns until a StatefulSet's copy runs.
    let object = shop.kube.get("statefulmigrations", NAMESPACE, "move");
    let took_turns = object
        .is_some_and(|object| moved && object["status"]["targetNode"] == pod["spec"]["nodeName"]);
    let there = pod["spec"]["nodeName"] == NODES[1] || took_turns;
    let leaves = shop.plan.scenario.owner == OwnerKind::Shrinking;
    if leaves && known(shop) && left != moved {
        found.push(format!("it has left its set: {left}, moved: {moved}"));
    }
    // A fresh pod may go anywhere, and who deletes the object does not say whether it was done.
    if moved != there && known(shop) && !excuses.bereaved && !excuses.forgiven {
        let name = &pod["metadata"]["name"];
        found.push(format!("{name} is on {}, moved: {moved}", pod["spec"]["nodeName"]));
    }
    found
}

/// What only a migration makes.
fn of_migrations(shop: &Shop) -> Vec<String> {
    let kinds = [
        "jobs",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "podtemplates",
    ];
    let left = kinds.map(|plural| (plural, shop.kube.all(plural).len()));
    let left = left.into_iter().filter(|(_, count)| *count > 0);
    left.map(|(plural, count)| format!("{count} {plural} are left")).collect()
}

/// What a migration has not removed yet, in the cluster or at the broker.
pub(super) fn left_over(shop: &Shop) -> Vec<String> {
    let held = |pod: &Value| !pod["metadata"]["finalizers"].is_null();
    let held = shop.kube.all("pods").iter().filter(|pod| held(pod)).count();
    let mut found = of_migrations(shop);
    found.extend((held > 0).then(|| format!("{held} pods are held")));
    found.extend(broker(shop, Excuses::default()));
    found
}

/// A Deployment goes on by itself with one ReplicaSet, and is pinned where its pod has moved to.
fn deployment(shop: &Shop, excuses: Excuses) -> Vec<String> {
    let mut found = Vec::new();
    let Some(deployment) = shop.kube.get("deployments", NAMESPACE, "app") else { return found };
    let paused = deployment["spec"]["paused"] == true;
    if paused || !deployment["metadata"]["annotations"]["migration.ms2m.io/paused-by"].is_null() {
        found.push(format!("the Deployment is paused: {deployment}"));
    }
    let sets = shop.kube.all("replicasets");
    let active = sets.iter().filter(|set| set["spec"]["replicas"] != 0).count();
    if active != 1 {
        found.push(format!("{active} ReplicaSets have pods"));
    }
    let object = shop.kube.get("statefulmigrations", NAMESPACE, "move");
    let asked = object.as_ref().is_some_and(|it| it["spec"]["pinToTargetNode"] != false);
    let completed = object.is_some_and(|object| object["status"]["phase"] == "Completed");
    let pin =
        &deployment["spec"]["template"]["metadata"]["annotations"]["migration.ms2m.io/pinned-to"];
    let second = shop.kube.get("statefulmigrations", NAMESPACE, "move-2").is_some();
    // A source that dies at the switch may be replaced before the template is changed.
    let expected = completed && asked && !excuses.bereaved;
    if known(shop) && !second && (*pin == NODES[1]) != expected && !excuses.bereaved {
        found.push(format!("asked: {asked}, completed: {completed}, pinned to {pin}"));
    }
    found
}

/// What came of the migration can be read.
fn known(shop: &Shop) -> bool {
    !shop.is_orphaned() && shop.kube.get("statefulmigrations", NAMESPACE, "move").is_some()
}

/// The set has no pod any more: its last one has left it.
fn has_left(shop: &Shop) -> bool {
    let set = shop.kube.get("statefulsets", NAMESPACE, "app");
    set.is_some_and(|set| set["spec"]["replicas"] == 0)
}

/// Nothing of the migration is left, and `Q` is fed as before.
fn broker(shop: &Shop, excuses: Excuses) -> Vec<String> {
    let mut found = Vec::new();
    let pods: Vec<String> = shop
        .kube
        .all("pods")
        .iter()
        .map(|pod| control_queue(pod["metadata"]["name"].as_str().unwrap_or_default()))
        .collect();
    // The control queue of an application that has died is its own affair.
    let died = excuses.bereaved || excuses.forgiven;
    shop.applications.broker.quietly(|core| {
        for name in core.queue_names().chain(core.exchange_names()) {
            let control = name.starts_with("ms2m.control.");
            let theirs = control && (died || pods.iter().any(|it| **it == **name));
            if name.contains("ms2m.") && !theirs {
                found.push(format!("{name} is left over"));
            }
        }
        let bindings = core.bindings(&Destination::Queue(QUEUE.into()));
        if bindings.len() != 1 {
            found.push(format!("{QUEUE} is bound by {bindings:?}"));
        }
        let open = core.connections().filter(|(.., label)| label.starts_with("shadow/")).count();
        if open > 0 {
            found.push(format!("{open} connections of the operator are open"));
        }
    });
    found
}

/// Every message is applied exactly once and in order by whoever survives.
fn messages(shop: &Shop, excuses: Excuses) -> Vec<String> {
    let ledgers = shop.applications.ledgers();
    let works = shop.applications.works();
    let (name, ledger) = match ledgers.iter().collect::<Vec<_>>().as_slice() {
        [(name, ledger)] => ((*name).clone(), (*ledger).clone()),
        [] if excuses.bereaved || excuses.forgiven => {
            (QUEUE.to_owned(), waiting(shop, works.base.clone()))
        }
        several => return vec![format!("{} copies survive", several.len())],
    };
    let mut found = Vec::new();
    if works.crowd > 1 && !excuses.bereaved && !excuses.strayed {
        found.push(format!("{} copies consumed {QUEUE} at once", works.crowd));
    }
    let careless = excuses.strayed || shop.plan.scenario.habits.late_acks > 0;
    if excuses.forgiven || excuses.bereaved && careless {
        return found;
    }
    let lost = missing(&ledger, &works.published).without(&works.unconfirmed).count();
    let unreplayed = works.running.values().find_map(|it| it.restored);
    let unreplayed = unreplayed.filter(|_| shop.plan.scenario.alone());
    if lost > unreplayed.map_or(0, |knew| works.last_words.saturating_sub(knew)) {
        found.push(format!("{lost} messages are lost to {name}: {ledger:?}"));
    }
    let Ledger { duplicated, mut reordered, .. } = ledger;
    if excuses.flooded || excuses.overtaken {
        reordered = 0;
    }
    let again = excuses.bereaved || excuses.intruded || excuses.strayed;
    if duplicated + reordered > 0 && !again {
        found.push(format!("{duplicated} duplicated, {reordered} reordered at {name}"));
    }
    found
}

/// What is known once somebody comes and applies what waits.
fn waiting(shop: &Shop, mut base: Ledger) -> Ledger {
    shop.applications.broker.quietly(|core| {
        for (message, count, _) in core.ready(QUEUE) {
            if let Message::Data(first) = message {
                base.apply((*first, count));
            }
        }
    });
    base
}
