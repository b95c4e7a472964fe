//! Create, replace, patch and delete, with the API server's rules.

use std::sync::Arc;

use serde_json::{Value, json};
use shadow_operator::clock;
use shadow_protocol::time::Time;

use super::kinds::Kind;
use super::object::{has, list, name, number, terminating, text};
use super::patch::{Style, merge};
use super::refusal::Refusal;
use super::store::{Key, Store};

/// Which part of an object a request writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All but the status, where that is a subresource.
    Object,
    /// The status alone.
    Status,
}

/// How something is to be deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Only the object with this UID.
    pub uid: Option<String>,
    /// Only this version of it.
    pub version: Option<String>,
    /// Grace in seconds, for pods.
    pub grace: Option<i64>,
    /// What becomes of the objects it owns: `Background`, `Foreground` or `Orphan`.
    pub propagation: Option<String>,
}

/// Of objects whose owner goes and asks that they stay.
const ORPHAN: &str = "orphan";
/// Of an owner that waits for what it owns.
pub(super) const FOREGROUND: &str = "foregroundDeletion";

type Written = Result<Arc<Value>, Refusal>;

impl Store {
    /// Creates an object; without a name, from its `generateName`.
    pub fn create(&mut self, plural: &'static str, namespace: &str, object: Value) -> Written {
        let (key, object) = self.made(plural, namespace, object)?;
        Ok(self.commit(key, Some(object)))
    }

    /// What [`Store::create`] would create.
    pub fn try_out(&mut self, plural: &'static str, namespace: &str, object: Value) -> Written {
        Ok(Arc::new(self.made(plural, namespace, object)?.1))
    }

    fn made(
        &mut self,
        plural: &'static str,
        namespace: &str,
        mut object: Value,
    ) -> Result<(Key, Value), Refusal> {
        let kind = Kind::named(plural).ok_or_else(|| Refusal::not_found(plural))?;
        if !object.is_object() || has(&object, "/metadata/resourceVersion") {
            return Err(Refusal::bad_request("resourceVersion should not be set on new objects"));
        }
        let own = text(&object, "/metadata/namespace");
        if kind.namespaced && !own.is_empty() && own != namespace {
            return Err(Refusal::bad_request("the namespaces of object and request differ"));
        }
        let pod = if plural == "podtemplates" { &object["template"] } else { &object };
        let imageless = |it: &&Value| text(it, "/image").is_empty();
        if let Some(container) = list(pod, "/spec/containers").iter().find(imageless) {
            let name = text(container, "/name");
            return Err(Refusal::invalid(format!("image of container {name:?}: Required value")));
        }
        let prefix = text(&object, "/metadata/generateName").to_owned();
        if name(&object).is_empty() {
            if prefix.is_empty() {
                return Err(Refusal::invalid("metadata.name: Required value"));
            }
            object["metadata"]["name"] = json!(format!("{prefix}{}", self.suffix()));
        }
        let namespace = if kind.namespaced { namespace } else { "" };
        let key = Key::new(plural, namespace, name(&object));
        if self.get(&key).is_some() {
            return Err(Refusal::exists(key));
        }
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.kind);
        let uid = self.uid();
        let metadata = &mut object["metadata"];
        if kind.namespaced {
            metadata["namespace"] = json!(namespace);
        }
        metadata["uid"] = json!(uid);
        metadata["creationTimestamp"] = json!(clock::rfc3339_seconds(clock::now()));
        metadata["generation"] = json!(1);
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.remove("deletionTimestamp");
        }
        match plural {
            "pods" => pod_defaults(&mut object),
            // Nodes report themselves; everybody else's status is its controller's business.
            "nodes" => {}
            _ if kind.status => {
                object.as_object_mut().and_then(|object| object.remove("status"));
            }
            _ => {}
        }
        Ok((key, object))
    }

    /// Replaces an object, or its status.
    pub fn replace(&mut self, key: &Key, mut new: Value, part: Part) -> Written {
        let old = self.get(key).ok_or_else(|| Refusal::not_found(key))?.clone();
        preconditions(key, &old, text(&new, "/metadata/uid"), version_of(&new))?;
        keep_others_part(key, &old, &mut new, part);
        self.settle(key, &old, new)
    }

    /// Merges `patch` into an object, or into its status.
    pub fn patch(&mut self, key: &Key, patch: &Value, style: Style, part: Part) -> Written {
        let old = self.get(key).ok_or_else(|| Refusal::not_found(key))?.clone();
        preconditions(key, &old, text(patch, "/metadata/uid"), version_of(patch))?;
        let mut new = Value::clone(&old);
        merge(&mut new, patch, style);
        keep_others_part(key, &old, &mut new, part);
        self.settle(key, &old, new)
    }

    /// Changes an object in any way, as controllers and kubelets do. An object that is gone or
    /// unchanged is left alone.
    pub fn modify(&mut self, key: &Key, change: impl FnOnce(&mut Value)) {
        let Some(old) = self.get(key).cloned() else { return };
        let mut new = Value::clone(&old);
        change(&mut new);
        let _ = self.settle(key, &old, new);
    }

    /// Deletes an object, or asks those who hold it (finalizers, the kubelet) to let it go.
    pub fn delete(&mut self, key: &Key, how: &Deletion) -> Written {
        let old = self.get(key).ok_or_else(|| Refusal::not_found(key))?.clone();
        preconditions(
            key,
            &old,
            how.uid.as_deref().unwrap_or_default(),
            how.version.as_deref().unwrap_or_default(),
        )?;
        let mut new = Value::clone(&old);
        let grace = if key.plural == "pods" { pod_grace(&old, how.grace) } else { 0 };
        let earlier = number(&old, "/metadata/deletionGracePeriodSeconds");
        if !terminating(&old) || earlier.is_some_and(|earlier| grace < earlier) {
            let at = clock::now().0 + u64::try_from(grace).unwrap_or(0) * 1_000;
            new["metadata"]["deletionTimestamp"] = json!(clock::rfc3339_seconds(Time(at)));
            new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        // Jobs are the one kind whose default is this.
        let default = if key.plural == "jobs" { "Orphan" } else { "Background" };
        match how.propagation.as_deref().unwrap_or(default) {
            "Orphan" => add_finalizer(&mut new, ORPHAN),
            "Foreground" => add_finalizer(&mut new, FOREGROUND),
            _ => {}
        }
        self.settle(key, &old, new)
    }

    /// Stores `new` if it differs, or removes it when nothing holds it any more.
    fn settle(&mut self, key: &Key, old: &Value, mut new: Value) -> Written {
        for field in ["name", "namespace", "uid", "creationTimestamp", "resourceVersion"] {
            copy(&old["metadata"], &mut new["metadata"], field);
        }
        if terminating(old) {
            // Once asked for, a deletion can't be taken back, only hastened by `delete`.
            if !terminating(&new) {
                copy(&old["metadata"], &mut new["metadata"], "deletionTimestamp");
                copy(&old["metadata"], &mut new["metadata"], "deletionGracePeriodSeconds");
            }
        }
        if list(&new, "/metadata/finalizers").is_empty()
            && let Some(metadata) = new["metadata"].as_object_mut()
        {
            metadata.remove("finalizers");
        }
        let held = has(&new, "/metadata/finalizers")
            || number(&new, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) > 0;
        if terminating(&new) && !held {
            return Ok(self.commit(key.clone(), None));
        }
        if new == *old {
            return self.get(key).cloned().ok_or_else(|| Refusal::not_found(key));
        }
        if new["spec"] != old["spec"] || terminating(&new) != terminating(old) {
            let generation = number(old, "/metadata/generation").unwrap_or(0);
            new["metadata"]["generation"] = json!(generation + 1);
        } else {
            copy(&old["metadata"], &mut new["metadata"], "generation");
        }
        Ok(self.commit(key.clone(), Some(new)))
    }

    /// One sweep of the garbage collector: objects all of whose owners are gone, orphans, and owners
    /// that wait for what they own.
    pub(super) fn collect_garbage(&mut self) {
        let alive: std::collections::BTreeSet<String> =
            self.everything().map(|(_, object)| super::object::uid(object).to_owned()).collect();
        let orphaning: Vec<(Key, String)> = self.with_finalizer(ORPHAN);
        for (owner, uid) in orphaning {
            for key in self.owned_by(&uid) {
                self.modify(&key, |object| remove_owner(object, &uid));
            }
            self.modify(&owner, |object| remove_finalizer(object, ORPHAN));
        }
        for (owner, uid) in self.with_finalizer(FOREGROUND) {
            let owned = self.owned_by(&uid);
            if owned.is_empty() {
                self.modify(&owner, |object| remove_finalizer(object, FOREGROUND));
            }
            for key in owned {
                let _ = self.delete(&key, &Deletion::default());
            }
        }
        let lost: Vec<Key> = self
            .everything()
            .filter(|(_, object)| {
                let owners = list(object, "/metadata/ownerReferences");
                !owners.is_empty()
                    && !terminating(object)
                    && owners.iter().all(|owner| !alive.contains(text(owner, "/uid")))
            })
            .map(|(key, _)| key.clone())
            .collect();
        let how = Deletion { propagation: Some("Background".to_owned()), ..Deletion::default() };
        for key in lost {
            let _ = self.delete(&key, &how);
        }
    }

    fn with_finalizer(&self, finalizer: &str) -> Vec<(Key, String)> {
        self.everything()
            .filter(|(_, object)| {
                terminating(object)
                    && list(object, "/metadata/finalizers").iter().any(|f| f == finalizer)
            })
            .map(|(key, object)| (key.clone(), super::object::uid(object).to_owned()))
            .collect()
    }

    fn owned_by(&self, uid: &str) -> Vec<Key> {
        self.everything()
            .filter(|(_, object)| {
                list(object, "/metadata/ownerReferences").iter().any(|o| text(o, "/uid") == uid)
            })
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn uid(&mut self) -> String {
        let (a, b) = (self.random(), self.random());
        let hex = format!("{a:016x}{b:016x}");
        let (third, last) = (&hex[13..16], &hex[17..20]);
        format!("{}-{}-4{third}-8{last}-{}", &hex[..8], &hex[8..12], &hex[20..])
    }

    fn suffix(&mut self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5)
            .map(|_| {
                let at = self.random() % LETTERS.len() as u64;
                char::from(LETTERS[usize::try_from(at).unwrap_or(0)])
            })
            .collect()
    }
}

fn version_of(object: &Value) -> &str {
    text(object, "/metadata/resourceVersion")
}

fn preconditions(key: &Key, old: &Value, uid: &str, version: &str) -> Result<(), Refusal> {
    if !uid.is_empty() && uid != super::object::uid(old) {
        return Err(Refusal::conflict(format!(
            "{key}: the UID in the precondition is another one"
        )));
    }
    if !version.is_empty() && version != version_of(old) {
        return Err(Refusal::conflict(format!("{key}: the object has been modified")));
    }
    Ok(())
}

/// A write of the object leaves the status alone and the other way round.
fn keep_others_part(key: &Key, old: &Value, new: &mut Value, part: Part) {
    let subresource = Kind::named(key.plural).is_some_and(|kind| kind.status);
    match part {
        Part::Object if subresource => copy(old, new, "status"),
        Part::Object => {}
        Part::Status => {
            let status = new["status"].take();
            *new = old.clone();
            new["status"] = status;
        }
    }
    copy(old, new, "apiVersion");
    copy(old, new, "kind");
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        copy(&old["metadata"], &mut new["metadata"], field);
    }
}

/// Makes `field` in `to` what it is in `from`.
fn copy(from: &Value, to: &mut Value, field: &str) {
    match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => {
            to.as_object_mut().and_then(|to| to.remove(field));
        }
    }
}

fn pod_defaults(pod: &mut Value) {
    pod["status"] = json!({ "phase": "Pending", "qosClass": "BestEffort" });
    let spec = &mut pod["spec"];
    for (field, value) in
        [("restartPolicy", json!("Always")), ("terminationGracePeriodSeconds", json!(30))]
    {
        if spec.get(field).is_none_or(Value::is_null) {
            spec[field] = value;
        }
    }
}

/// Nobody waits for a pod that no kubelet has.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let own = number(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(30);
    let ended = matches!(text(pod, "/status/phase"), "Failed" | "Succeeded");
    if text(pod, "/spec/nodeName").is_empty() || ended { 0 } else { asked.unwrap_or(own) }
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let mut all = list(object, "/metadata/finalizers").to_vec();
    if !all.iter().any(|f| f == finalizer) {
        all.push(json!(finalizer));
    }
    object["metadata"]["finalizers"] = Value::Array(all);
}

fn remove_finalizer(object: &mut Value, finalizer: &str) {
    let all = list(object, "/metadata/finalizers").iter().filter(|f| *f != finalizer);
    object["metadata"]["finalizers"] = Value::Array(all.cloned().collect());
}

fn remove_owner(object: &mut Value, uid: &str) {
    let all = list(object, "/metadata/ownerReferences").iter().filter(|o| text(o, "/uid") != uid);
    object["metadata"]["ownerReferences"] = Value::Array(all.cloned().collect());
}
