//! What is left in the cluster of migrations that are no more, and what may be done about it. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};
use shadow_api::names::{
    ANNOTATION_SOURCE, ANNOTATION_UID, LABEL_MIGRATION, LABEL_ROLE, ROLE_TARGET, ROLE_TRANSFER,
    SYSTEM_NAMESPACE,
};
use shadow_protocol::time::Time;

use crate::pin::PAUSED_BY;
use crate::target_pod::FINALIZER_COPY;
use crate::transfer_job::short;

/// The label and name of the pods that look at a node, and after how many seconds one that has ended is
/// nobody's.
const DOCTOR: (&str, &str) = ("app.kubernetes.io/name", "shadow-doctor");
const READ_BY_THEN: i64 = 600;

/// The migrations that must be left alone.
#[derive(Debug, Default)]
pub struct Living {
    /// UIDs of those that exist, and of those that a task works on all the same.
    pub uids: BTreeSet<String>,
    /// Namespaces and names of those that exist.
    pub names: BTreeSet<(String, String)>,
}

/// What was found, each kind before the living were asked for.
#[derive(Debug, Default)]
pub struct Found {
    /// `ValidatingAdmissionPolicy` objects with our label.
    pub policies: Vec<ObjectMeta>,
    /// Their bindings.
    pub bindings: Vec<ObjectMeta>,
    /// Templates with our label.
    pub templates: Vec<ObjectMeta>,
    /// Jobs with our label.
    pub jobs: Vec<ObjectMeta>,
    /// All pods.
    pub pods: Vec<Arc<Pod>>,
    /// All Deployments.
    pub deployments: Vec<ObjectMeta>,
}

/// What kind of object something is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Deleted.
    Binding,
    /// Deleted.
    Policy,
    /// Let go and deleted.
    Template,
    /// Deleted, with its pods.
    Job,
    /// Deleted.
    Pod,
    /// Its finalizer is taken away.
    HeldPod,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Chore {
    /// What, to which kind.
    pub what: What,
    /// The object.
    pub object: ObjectMeta,
}

/// Something to say, and nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// About whom.
    pub about: ObjectReference,
    /// A word for events.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Living {
    fn id(&self, id: &str) -> bool {
        self.uids.iter().any(|uid| short(uid) == id)
    }

    /// Whoever has labelled `object`, by its UID if that is known.
    fn owns(&self, object: &ObjectMeta, uid: Option<&str>) -> bool {
        let name = label(object, LABEL_MIGRATION).unwrap_or_default().to_owned();
        let namespace = object.namespace.clone().unwrap_or_default();
        match uid {
            Some(uid) => self.uids.contains(uid),
            None => self.names.contains(&(namespace, name)),
        }
    }
}

fn label<'a>(object: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    object.labels.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'a>(object: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    object.annotations.as_ref()?.get(key).map(String::as_str)
}

/// What is to be done, and what is to be said.
pub fn chores(found: &Found, living: &Living, now: Time) -> (Vec<Chore>, Vec<Notice>) {
    let mut chores = Vec::new();
    let mut add = |what, object: &ObjectMeta| chores.push(Chore { what, object: object.clone() });
    // Without its binding a policy denies nothing.
    for (what, objects) in [(What::Binding, &found.bindings), (What::Policy, &found.policies)] {
        for object in objects {
            let uid = object.name.as_deref().and_then(|name| name.strip_prefix("shadow-"));
            if uid.is_some_and(|uid| !living.uids.contains(uid)) {
                add(what, object);
            }
        }
    }
    for object in &found.templates {
        let owner = object.owner_references.iter().flatten().next();
        let uid = annotation(object, ANNOTATION_UID).or(owner.map(|owner| owner.uid.as_str()));
        if !living.owns(object, uid) {
            add(What::Template, object);
        }
    }
    for object in &found.jobs {
        if is_of_none(object, ROLE_TRANSFER, &["ms2m-transfer-"], living) {
            add(What::Job, object);
        }
    }
    let mut notices: Vec<Notice> =
        found.deployments.iter().filter_map(|it| half_pinned(it, living)).collect();
    for pod in &found.pods {
        let of_pod = pod_of_none(pod, found, living, now);
        of_pod.0.into_iter().for_each(|what| add(what, &pod.metadata));
        notices.extend(of_pod.1);
    }
    (chores, notices)
}

/// A helper, by its role and its name, of a migration that is no more.
fn is_of_none(object: &ObjectMeta, role: &str, prefixes: &[&str], living: &Living) -> bool {
    let name = object.name.as_deref().unwrap_or_default();
    let id = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    label(object, LABEL_MIGRATION).is_some()
        && label(object, LABEL_ROLE) == Some(role)
        && object.deletion_timestamp.is_none()
        && id.is_some_and(|id| !living.id(id))
}

fn half_pinned(deployment: &ObjectMeta, living: &Living) -> Option<Notice> {
    let by = annotation(deployment, PAUSED_BY).filter(|by| !living.uids.contains(*by))?;
    let (namespace, name) =
        (deployment.namespace.as_deref()?, deployment.name.as_deref().unwrap_or_default());
    Some(Notice {
        about: ObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: Some("Deployment".to_owned()),
            name: deployment.name.clone(),
            namespace: deployment.namespace.clone(),
            uid: deployment.uid.clone(),
            ..ObjectReference::default()
        },
        reason: "PausedByMigration",
        message: format!(
            "Deployment {namespace}/{name} was paused by migration {by} while it was pinned to a node, and \
             that is gone: it stays as it is; see which of its ReplicaSets has the pod that is to stay, \
             then resume it (kubectl rollout resume) and remove the annotation {PAUSED_BY}"
        ),
    })
}

fn pod_of_none(
    pod: &Pod,
    found: &Found,
    living: &Living,
    now: Time,
) -> (Vec<What>, Option<Notice>) {
    let object = &pod.metadata;
    if has_been_read(pod, now)
        || is_of_none(object, "prepull", &["ms2m-prepull-", "ms2m-pull-"], living)
    {
        return (vec![What::Pod], None);
    }
    let uid = annotation(object, ANNOTATION_UID);
    if label(object, LABEL_MIGRATION).is_none() || living.owns(object, uid) {
        return (Vec::new(), None);
    }
    let held = pod.finalizers().iter().any(|it| it == FINALIZER_COPY);
    let mut todo: Vec<What> = held.then_some(What::HeldPod).into_iter().collect();
    if label(object, LABEL_ROLE) != Some(ROLE_TARGET) || object.deletion_timestamp.is_some() {
        return (todo, None);
    }
    let whole = source_is_whole(pod, &found.pods);
    if whole && !is_announced(object) {
        todo.push(What::Pod);
        return (todo, None);
    }
    (todo, Some(left(pod, whole)))
}

/// One that has looked at a node, and has ended long since.
fn has_been_read(pod: &Pod, now: Time) -> bool {
    let object = &pod.metadata;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let created = object.creation_timestamp.as_ref().map(|at| at.0.as_second());
    let now = i64::try_from(now.0 / 1_000).unwrap_or(0);
    object.namespace.as_deref() == Some(SYSTEM_NAMESPACE)
        && label(object, DOCTOR.0) == Some(DOCTOR.1)
        && matches!(phase, Some("Succeeded" | "Failed"))
        && object.deletion_timestamp.is_none()
        && created.is_some_and(|created| now - created > READ_BY_THEN)
}

/// Services or its owner may know it: it has more than the migration's own labels.
fn is_announced(target: &ObjectMeta) -> bool {
    let mut labels = target.labels.iter().flatten();
    labels.any(|(key, _)| key != LABEL_MIGRATION && key != LABEL_ROLE)
}

/// The process that the copy was made from runs on: it has the state, and has it newer.
fn source_is_whole(copy: &Pod, pods: &[Arc<Pod>]) -> bool {
    let made_from = annotation(&copy.metadata, ANNOTATION_SOURCE).and_then(|it| it.split_once(' '));
    let Some((uid, container)) = made_from else { return false };
    let Some(source) = pods.iter().find(|pod| pod.uid().as_deref() == Some(uid)) else {
        return false;
    };
    let statuses = source.status.as_ref().and_then(|it| it.container_statuses.as_ref());
    // One that has been started afresh since has another ID, and knows nothing.
    let mut same = statuses.into_iter().flatten().filter(|status| {
        let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
        runs && status.container_id.as_deref() == Some(container)
    });
    same.next().is_some() && source.metadata.deletion_timestamp.is_none()
}

fn left(pod: &Pod, whole: bool) -> Notice {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let migration = label(&pod.metadata, LABEL_MIGRATION).unwrap_or_default();
    let why = if whole {
        "its source runs as well, and Services may know both: see which of the two consumes the queue, and \
         delete the other"
    } else {
        "its source does not run any more, so it may be the only one that has the state: keep it, or \
         delete it if nobody needs it"
    };
    Notice {
        about: pod.object_ref(&()),
        reason: "CopyLeft",
        message: format!(
            "pod {namespace}/{name} is the copy that StatefulMigration {migration} has made, which is gone. \
             It is left as it is: {why}; docs/operations.md, \"The janitor\""
        ),
    }
}

#[cfg(test)]
mod tests;
