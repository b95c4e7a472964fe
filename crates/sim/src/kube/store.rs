//! The API server's memory: objects, their versions, and who watches them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use serde_json::{Value, json};

use super::refusal::Refusal;
use super::selector::Selector;

/// Name of an object: its kind, its namespace (empty for objects outside of namespaces), its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The kind's name in paths, as `pods`.
    pub plural: &'static str,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The object `name` of the kind `plural`.
    pub fn new(plural: &'static str, namespace: &str, name: &str) -> Self {
        Self { plural, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key of `object`, which is of the kind `plural`.
    pub fn of(plural: &'static str, object: &Value) -> Self {
        Self::new(plural, super::object::namespace(object), super::object::name(object))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.plural, self.name)
    }
}

/// One change of one object.
struct Change {
    version: u64,
    plural: &'static str,
    namespace: String,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

/// What a watch is about.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Kind.
    pub plural: &'static str,
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only these objects.
    pub selector: Selector,
}

struct Watch {
    scope: Scope,
    sender: UnboundedSender<Bytes>,
}

/// The objects.
pub struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    version: u64,
    log: Vec<Change>,
    /// Watches can't begin before this version.
    oldest: u64,
    watches: Vec<Watch>,
    /// State of the generator that makes UIDs and name suffixes.
    random: u64,
}

impl Store {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            version: 1,
            log: Vec::new(),
            oldest: 1,
            watches: Vec::new(),
            random: seed,
        }
    }

    /// The version of the newest change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// An object.
    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// All objects of a kind, ordered by namespace and name.
    pub fn all(&self, plural: &'static str) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        let from = Key { plural, namespace: String::new(), name: String::new() };
        self.objects.range(from..).take_while(move |(key, _)| key.plural == plural)
    }

    /// All objects of all kinds.
    pub fn everything(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }

    /// The objects that `scope` is about.
    pub fn list(&self, scope: &Scope) -> Vec<Arc<Value>> {
        self.all(scope.plural)
            .filter(|(key, _)| scope.namespace.as_ref().is_none_or(|n| *n == key.namespace))
            .filter(|(_, object)| scope.selector.matches(object))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Stores `after` under `key` (or removes what is there), with a new version, and tells those
    /// who watch.
    pub(super) fn commit(&mut self, key: Key, after: Option<Value>) -> Arc<Value> {
        self.version += 1;
        let before = self.objects.remove(&key);
        let version = json!(self.version.to_string());
        let (kept, last) = if let Some(mut object) = after {
            object["metadata"]["resourceVersion"] = version;
            let object = Arc::new(object);
            self.objects.insert(key.clone(), object.clone());
            (Some(object.clone()), object)
        } else {
            let mut last = before.as_deref().cloned().unwrap_or_default();
            last["metadata"]["resourceVersion"] = version;
            (None, Arc::new(last))
        };
        let change = Change {
            version: self.version,
            plural: key.plural,
            namespace: key.namespace,
            before: if kept.is_none() { Some(last.clone()) } else { before },
            after: kept,
        };
        self.watches.retain(|watch| match event(&watch.scope, &change) {
            Some(event) => watch.sender.unbounded_send(event).is_ok(),
            None => !watch.sender.is_closed(),
        });
        self.log.push(change);
        last
    }

    /// Begins a watch of all that happens after `since`; `None`: from now on, with what is there
    /// first.
    pub(super) fn watch(
        &mut self,
        scope: Scope,
        since: Option<u64>,
    ) -> Result<UnboundedReceiver<Bytes>, Refusal> {
        let (sender, receiver) = unbounded();
        let past: Vec<Bytes> = match since {
            Some(since) if since < self.oldest => return Err(Refusal::expired()),
            Some(since) => {
                let log = self.log.iter().filter(|change| change.version > since);
                log.filter_map(|change| event(&scope, change)).collect()
            }
            None => self.list(&scope).iter().map(|object| line("ADDED", object)).collect(),
        };
        for event in past {
            let _ = sender.unbounded_send(event);
        }
        self.watches.push(Watch { scope, sender });
        Ok(receiver)
    }

    /// Ends the watches of `plural`, or all of them.
    pub(super) fn cut_watches(&mut self, plural: Option<&str>) {
        self.watches.retain(|watch| plural.is_some_and(|plural| plural != watch.scope.plural));
    }

    /// Forgets what has happened so far: a watch that was cut can't go on where it was.
    pub(super) fn forget_history(&mut self) {
        self.log.clear();
        self.oldest = self.version;
    }

    /// The next number of the generator (splitmix64).
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What a watch of `scope` says about `change`: an object that it no longer selects is gone for it.
fn event(scope: &Scope, change: &Change) -> Option<Bytes> {
    let here = scope.plural == change.plural
        && scope.namespace.as_ref().is_none_or(|n| *n == change.namespace);
    if !here {
        return None;
    }
    let seen = |object: &Option<Arc<Value>>| {
        object.as_ref().is_some_and(|object| scope.selector.matches(object))
    };
    match (seen(&change.before), seen(&change.after)) {
        (false, true) => change.after.as_ref().map(|object| line("ADDED", object)),
        (true, true) => change.after.as_ref().map(|object| line("MODIFIED", object)),
        (true, false) => {
            change.after.as_ref().or(change.before.as_ref()).map(|object| line("DELETED", object))
        }
        (false, false) => None,
    }
}

/// An event of a watch as it goes over the wire.
pub(super) fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}
