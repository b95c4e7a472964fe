//! The Deployment controller, as far as templates, pauses and ReplicaSets that others make go: what
//! `pkg/controller/deployment` of Kubernetes 1.36 does in `sync.go`, `rolling.go` and `recreate.go`,
//! with room for one pod more and none less.

use std::sync::Arc;

use serde_json::{Value, json};

use super::object::{controlled_by, controller, list, map, name, number, terminating, text, uid};
use super::store::{Key, Store};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// How many pods there may be beyond the number wanted.
const SURGE: i64 = 1;

/// A Deployment's ReplicaSets: the one of its template, and the others, the oldest first.
struct Sets {
    new: Option<Arc<Value>>,
    old: Vec<Arc<Value>>,
}

impl Sets {
    fn of(store: &Store, deployment: &Value) -> Self {
        let all = store.all("replicasets").map(|(_, set)| set);
        let mine = all.filter(|set| controller(set) == Some(uid(deployment)) && !terminating(set));
        let mut mine: Vec<Arc<Value>> = mine.cloned().collect();
        mine.sort_by_key(|set| {
            (text(set, "/metadata/creationTimestamp").to_owned(), name(set).to_owned())
        });
        let wanted = plain(&deployment["spec"]["template"]);
        let new = mine.iter().position(|set| plain(&set["spec"]["template"]) == wanted);
        let new = new.map(|at| mine.remove(at));
        Self { new, old: mine }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Value>> {
        self.new.iter().chain(&self.old)
    }

    fn total(&self) -> i64 {
        self.all().map(|set| replicas(set)).sum()
    }
}

/// A template but for its hash.
fn plain(template: &Value) -> Value {
    let mut template = template.clone();
    let labels = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut);
    labels.and_then(|labels| labels.remove(HASH));
    template
}

fn replicas(object: &Value) -> i64 {
    number(object, "/spec/replicas").unwrap_or(1)
}

fn available(set: &Value) -> i64 {
    number(set, "/status/availableReplicas").unwrap_or(0)
}

fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    map(object, "/metadata/annotations").get(key)?.as_str()
}

fn revision(set: &Value) -> u64 {
    annotation(set, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

fn scale(store: &mut Store, set: &Value, to: i64) {
    store.modify(&Key::of("replicasets", set), |set| {
        if set["spec"]["replicas"] != to {
            set["spec"]["replicas"] = json!(to);
        }
    });
}

/// One look at every Deployment that has a template.
pub(super) fn deployments(store: &mut Store) {
    let all: Vec<Arc<Value>> = store.all("deployments").map(|(_, object)| object.clone()).collect();
    for deployment in all.iter().filter(|it| !terminating(it) && it["spec"]["template"].is_object())
    {
        let sets = Sets::of(store, deployment);
        take_over(store, deployment, &sets);
        if deployment["spec"]["paused"] == true {
            paused(store, deployment, &sets);
        } else {
            roll_out(store, deployment, &sets);
        }
        report(store, deployment);
    }
}

/// The ReplicaSet of the template is the newest revision, whoever has made it.
fn take_over(store: &mut Store, deployment: &Value, sets: &Sets) {
    let Some(new) = &sets.new else { return };
    let newest = sets.old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1;
    let number = json!(revision(new).max(newest).to_string());
    for key in [Key::of("replicasets", new), Key::of("deployments", deployment)] {
        store.modify(&key, |object| object["metadata"]["annotations"][REVISION] = number.clone());
    }
}

/// Nothing is rolled out, but a new ReplicaSet that has all its pods leaves none to the old ones.
fn paused(store: &mut Store, deployment: &Value, sets: &Sets) {
    let wanted = replicas(deployment);
    let active: Vec<&Arc<Value>> = sets.all().filter(|set| replicas(set) > 0).collect();
    if let [one] = active.as_slice() {
        return scale(store, one, wanted);
    }
    let Some(new) = &sets.new else { return };
    let desired = annotation(new, DESIRED) == Some(wanted.to_string().as_str());
    if desired && replicas(new) == wanted && available(new) == wanted {
        for old in &sets.old {
            scale(store, old, 0);
        }
    } else if !recreates(deployment) {
        for set in active {
            store.modify(&Key::of("replicasets", set), |set| {
                set["metadata"]["annotations"][DESIRED] = json!(wanted.to_string());
            });
        }
    }
}

fn recreates(deployment: &Value) -> bool {
    text(deployment, "/spec/strategy/type") == "Recreate"
}

fn roll_out(store: &mut Store, deployment: &Value, sets: &Sets) {
    let wanted = replicas(deployment);
    if recreates(deployment) {
        let pods = |set: &Arc<Value>| number(set, "/status/replicas").unwrap_or(0);
        for old in &sets.old {
            scale(store, old, 0);
        }
        if sets.old.iter().any(|old| replicas(old) + pods(old) > 0) {
            return;
        }
    }
    let room = (wanted + SURGE - sets.total()).max(0);
    let Some(new) = &sets.new else { return create(store, deployment, room.min(wanted)) };
    if replicas(new) != wanted {
        return scale(store, new, wanted.min(replicas(new) + room));
    }
    let mut surplus = available(new) + sets.total() - replicas(new) - wanted;
    for old in &sets.old {
        let fewer = replicas(old).min(surplus.max(0));
        surplus -= fewer;
        scale(store, old, replicas(old) - fewer);
    }
}

fn create(store: &mut Store, deployment: &Value, replicas: i64) {
    let wanted = self::replicas(deployment).to_string();
    let hash = format!("{:x}", store.random() & 0xffff_ffff);
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(hash);
    let set = json!({
        "metadata": {
            "name": format!("{}-{hash}", name(deployment)),
            "labels": template["metadata"]["labels"],
            "annotations": { DESIRED: wanted },
            "ownerReferences": [controlled_by(deployment)],
        },
        "spec": { "replicas": replicas, "selector": selector, "template": template },
    });
    let namespace = text(deployment, "/metadata/namespace").to_owned();
    let _ = store.create("replicasets", &namespace, set);
}

fn report(store: &mut Store, deployment: &Value) {
    let sets = Sets::of(store, deployment);
    let count = |set: &Arc<Value>, what: &str| number(set, what).unwrap_or(0);
    let sum = |what: &str| sets.all().map(|set| count(set, what)).sum::<i64>();
    let status = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": sum("/status/replicas"),
        "readyReplicas": sum("/status/readyReplicas"),
        "availableReplicas": sum("/status/availableReplicas"),
        "updatedReplicas": sets.new.iter().map(|set| count(set, "/status/replicas")).sum::<i64>(),
    });
    store.modify(&Key::of("deployments", deployment), |it| it["status"] = status);
}

/// Whether a node with these labels is one of those that a pod's affinity requires.
pub(super) fn attracts(pod: &Value, labels: &serde_json::Map<String, Value>) -> bool {
    const TERMS: &str = "/spec/affinity/nodeAffinity/\
                         requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let among = |one: &Value| {
        let label = labels.get(text(one, "/key"));
        label.is_some_and(|label| list(one, "/values").contains(label))
    };
    let terms = list(pod, TERMS);
    terms.is_empty() || terms.iter().any(|term| list(term, "/matchExpressions").iter().all(among))
}
